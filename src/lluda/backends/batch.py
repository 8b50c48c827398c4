"""What a step is given beside its hidden states: which rows belong to which sequence, and what is kept of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class RowsElsewhere(Protocol):
    """Where a backend keeps rows of stores that their tensors do not hold yet."""

    def settle(self, store: KeyValueStore) -> None:
        """Bring all rows of a store to its tensors."""

    def wrote(self, store: KeyValueStore) -> None:
        """The store's tensors are about to be given other rows from its length on."""


class KeyValueStore(Protocol):
    """Where one sequence's keys and values live. ``length`` positions are filled before a step; the step's rows are
    stored layer by layer and counted once, by the engine, when the step is done."""

    length: int
    elsewhere: RowsElsewhere | None
    """Whom to ask for rows before the store's tensors are read but by the backend; None: they hold all."""

    def reserve(self, rows: int) -> tuple[Tensor, Tensor]:
        """The buffers of keys and of values with space for ``rows`` more positions in every layer, what is stored kept:
        each ``[layers, kv_heads, capacity, head_dim]`` in the store's dtype. They stay the same until more is asked."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive rows of a step that belong to one sequence."""

    start: int
    rows: int
    store: KeyValueStore


@dataclass(frozen=True, slots=True)
class DeepStack:
    """Hidden states of a vision encoder that are added between layers: after layer i, ``embeddings[i] [n, hidden]`` to
    the rows ``rows`` (int64 ``[n]``), for as many layers as there are."""

    rows: Tensor
    embeddings: Sequence[Tensor]


class ConvContext(Protocol):
    """What the convolutions of one stream keep of their past."""

    def with_context(self, convolution: object, x: Tensor, count: int, *, padded: bool) -> Tensor:
        """The last ``count`` rows that ``convolution`` has seen (zeros, if ``padded``, before the first), then ``x``,
        whose last rows are kept in turn."""

    def has_begun(self, convolution: object) -> bool:
        """Whether ``convolution`` has seen a row."""

    def rows(self, convolution: object, like: Tensor, count: int, dtype: torch.dtype) -> Tensor:
        """Where these rows lie, ``[count, channels]`` with the channels and device of ``like``: to be changed in place
        instead of joined. Zeros at first."""


class WindowedStore(KeyValueStore, Protocol):
    """The keys and values of a stream of the vocoder, which counts its own rows."""

    def advance(self, rows: int) -> None:
        """Count ``rows`` positions that every layer has stored."""


class VocoderState(Protocol):
    """What one stream of a vocoder needs of its past."""

    frames: int
    """Frames so far, counted by the backend."""

    @property
    def conv_state(self) -> ConvContext:
        """What its convolutions keep."""

    @property
    def cache(self) -> WindowedStore:
        """What its decoder keeps."""

    def positions(self, count: int, device: torch.device) -> Tensor:
        """Positions ``[count]`` of the next frames."""
