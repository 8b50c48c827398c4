"""What a parameter is before it has values: the vocabulary between models, the loader, synth and the memory plan.

Importable by all; imports nothing of ours but errors.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

from lluda.errors import InvalidRequest

Role = Literal["matrix", "embedding", "router", "norm", "bias", "scale", "kernel"]
"""How a parameter is used: ``matrix`` multiplies rows (may be packed or quantised), ``embedding`` is looked up by row,
``router`` chooses experts (stays unrounded), ``norm`` scales a normalised row (synth draws it around 1), ``bias`` is
added, ``scale`` is any other vector, ``kernel`` belongs to a convolution."""


Split = Literal["rows", "columns", "experts", "none"]
"""How the members of a tensor-parallel group share a tensor (Shoeybi et al. 2019): equal parts of its ``rows`` (a
vector's values), whose results lie side by side; of its ``columns``, whose results are added; the tensors of a part of
the ``experts``, whose results are added; or all of it each (``none``). A vector with ``columns`` is the bias of such a
matrix: added once, by the first member."""


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
    expert: tuple[int, int] | None = None
    """Of an expert's tensor, its index and how many experts there are."""

    @property
    def elements(self) -> int:
        """Number of values."""
        return prod(self.shape)

    def part(self, rank: int, ranks: int) -> tuple[slice, ...] | None:
        """What member ``rank`` of ``ranks`` has of the tensor, as an index of its values; None: nothing.

        InvalidRequest: it cannot be shared by so many."""
        if self.split == "experts":
            assert self.expert is not None, f"{self.name} is of no expert"
            index, count = self.expert
            return () if index in expert_range(count, rank, ranks) else None
        if self.split == "none" or ranks == 1:
            return ()
        if self.split == "columns" and len(self.shape) == 1:
            return () if rank == 0 else None
        axis, what = 1 if self.split == "columns" else 0, self.split if self.unit == 1 else "heads"
        part = _equal_part(self.shape[axis] // self.unit, rank, ranks, f"{what} of {self.name}")
        return (slice(None),) * axis + (slice(part.start * self.unit, part.stop * self.unit),)


def expert_range(count: int, rank: int, ranks: int) -> range:
    """Which of ``count`` experts member ``rank`` of ``ranks`` has. InvalidRequest: they cannot be shared by so many."""
    return _equal_part(count, rank, ranks, "experts")


def _equal_part(count: int, rank: int, ranks: int, what: str) -> range:
    if count % ranks:
        raise InvalidRequest(f"{count} {what} cannot be shared by {ranks} devices; take a number that divides {count}")
    width = count // ranks
    return range(rank * width, (rank + 1) * width)
