"""What rank 0 tells the other ranks to do, each of which then does the same with its own slices and caches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lluda.backends.group import Group
from lluda.models.decoder import MultimodalEmbeddings


@dataclass(frozen=True, slots=True)
class StoreState:
    """A cache of rank 0's, by its number, as it is before the step."""

    number: int
    length: int
    position_offset: int | float


@dataclass(frozen=True, slots=True)
class StepRows:
    """The rows of a step: ``ids``; ``positions``, one or (on the host) ``[3, rows]`` of them; of which rows logits are
    ``wanted`` (None: of all)."""

    ids: Sequence[int]
    positions: range | Sequence[float] | Tensor
    wanted: Sequence[int] | None = None

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
        """The three on ``device``."""
        positions = self.positions
        if isinstance(positions, Tensor):
            placed = positions.to(device)
        elif isinstance(positions, range):
            placed = torch.arange(positions.start, positions.stop, device=device)
        else:
            placed = torch.tensor(list(positions), device=device)
        wanted = None if self.wanted is None else torch.tensor(list(self.wanted), dtype=torch.int64, device=device)
        return torch.tensor(list(self.ids), device=device), placed, wanted


@dataclass(frozen=True, slots=True)
class InjectedShape:
    """Which rows of a step are embeddings of media; their numbers come through the group."""

    rows: Sequence[int]
    deepstack_rows: Sequence[int]
    layers: int
    hidden: int
    dtype: torch.dtype

    @classmethod
    def of(cls, injected: MultimodalEmbeddings) -> InjectedShape:
        """Of the media of a step on rank 0."""
        made = injected.embeddings
        rows, deep_rows = injected.rows.tolist(), injected.deepstack_rows.tolist()
        return cls(rows, deep_rows, len(injected.deepstack), made.shape[1], made.dtype)

    def receive(self, group: Group, device: torch.device) -> MultimodalEmbeddings:
        """What rank 0 sends by `send_injected`."""

        def part(rows: Sequence[int]) -> Tensor:
            return group.from_first(torch.empty(len(rows), self.hidden, dtype=self.dtype, device=device))

        rows, deep_rows = (torch.tensor(list(each), device=device) for each in (self.rows, self.deepstack_rows))
        embeddings = part(self.rows)
        deepstack = [part(self.deepstack_rows) for _ in range(self.layers)]
        return MultimodalEmbeddings(rows, embeddings, deep_rows, deepstack)


def send_injected(injected: MultimodalEmbeddings, group: Group) -> None:
    """Give the other ranks the rows of a step's media."""
    for rows in (injected.embeddings, *injected.deepstack):
        group.from_first(rows.to(injected.embeddings.dtype))


@dataclass(frozen=True, slots=True)
class Forward:
    """Run rows through the network: ``segments`` are how many rows each cache gets, in turn. ``observed``: the
    stage that somebody looks at (empty: all); ``scored``: whether the logits of all rows are wanted, part by part."""

    rows: StepRows
    segments: Sequence[tuple[int, StoreState]]
    injected: InjectedShape | None = None
    observed: str | None = None
    scored: bool = False


@dataclass(frozen=True, slots=True)
class Launch:
    """Launch a captured step of these sequences, of the kind that is ``sampled`` or not."""

    ids: Sequence[int]
    stores: Sequence[StoreState]
    sampled: bool


@dataclass(frozen=True, slots=True)
class NewCache:
    """Make the cache ``number``, for ``capacity`` positions at first."""

    number: int
    capacity: int | None


@dataclass(frozen=True, slots=True)
class CopyRows:
    """Hold the first ``rows`` of ``source`` in ``target``, as `KVCache.copy_rows`."""

    source: StoreState
    target: StoreState
    rows: int


@dataclass(frozen=True, slots=True)
class LookUp:
    """Look up rows of the table of tokens."""

    ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class Stop:
    """End."""


Order = Forward | Launch | NewCache | CopyRows | LookUp | Stop
