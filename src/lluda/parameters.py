"""What a parameter is before it has values: the vocabulary between models, the loader, synth and the memory plan.

Importable by all; imports nothing of ours but errors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Literal

from lluda.errors import InvalidRequest

Role = Literal["matrix", "embedding", "router", "norm", "bias", "scale", "kernel"]
"""How a parameter is used: ``matrix`` multiplies rows (may be packed or quantised), ``embedding`` is looked up by row,
``router`` chooses experts (stays unrounded), ``norm`` scales a normalised row (synth draws it around 1), ``bias`` is
added, ``scale`` is any other vector, ``kernel`` belongs to a convolution."""


Split = Literal["rows", "columns", "none"]
"""How the members of a tensor-parallel group share a tensor (Shoeybi et al. 2019): equal parts of its ``rows`` (a
vector's values), whose results lie side by side; of its ``columns``, whose results are added; or all of it each
(``none``). A vector with ``columns`` is the bias of such a matrix: added once, by the first member. Experts are cut
like any feed-forward, so that every member has a part of each: whichever a token chooses, all have as much to do."""


@dataclass(frozen=True, slots=True)
class Share:
    """What member ``rank`` of a tensor-parallel group of ``ranks`` has of a model; the default is all of it."""

    rank: int = 0
    ranks: int = 1


WHOLE = Share()


@dataclass(frozen=True, slots=True)
class ParameterSpec:
    """One tensor a model reads: its name in the checkpoint, its shape (torch order) and its role.

    ``tied_to`` names the tensor whose values it shares when the config ties them; such a tensor may be absent from the
    checkpoint, or stored twice (the released Qwen3-0.6B stores ``lm_head.weight`` beside the identical embedding).
    """

    name: str
    shape: tuple[int, ...]
    role: Role
    tied_to: str | None = None
    split: Split = "none"
    unit: int = 1
    """Rows or columns that stay together: those of a head."""
    repeated: bool = False
    """Whether members may have the same part, where there are fewer units than members: heads of keys and values."""

    @property
    def elements(self) -> int:
        """Number of values."""
        return prod(self.shape)

    @property
    def axis(self) -> int:
        """Which axis ``split`` cuts."""
        return 1 if self.split == "columns" and len(self.shape) > 1 else 0

    def part(self, share: Share) -> slice | None:
        """What ``share`` has of the tensor, of its ``axis``; None: nothing, so that it adds zeros.

        InvalidRequest: it cannot be shared by so many."""
        if self.split == "columns" and len(self.shape) == 1:
            return slice(0, self.shape[0]) if share.rank == 0 else None
        size = self.shape[self.axis]
        if self.split == "none" or share.ranks == 1:
            return slice(0, size)
        count, rank, ranks = size // self.unit, share.rank, share.ranks
        if self.repeated and ranks > count and ranks % count == 0:
            rank, ranks = rank * count // ranks, count
        if count % ranks:
            what = self.split if self.unit == 1 else "heads"
            raise InvalidRequest(
                f"{count} {what} of {self.name} cannot be shared by {ranks} ranks; take a tensor_parallel (--tp) that "
                f"divides {count}"
            )
        width = count // ranks * self.unit
        return slice(rank * width, (rank + 1) * width)

    def shared(self, share: Share) -> ParameterSpec:
        """The same of the part that ``share`` has. Errors as `part`."""
        part = self.part(share)
        if part is None or part == slice(0, self.shape[self.axis]):
            return self
        shape = tuple(part.stop - part.start if axis == self.axis else size for axis, size in enumerate(self.shape))
        return replace(self, shape=shape)
