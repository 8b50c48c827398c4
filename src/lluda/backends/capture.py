"""Captured steps: what a function puts on a device, recorded once and launched again as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from lluda.backends.batch import KeyValueStore, Segment

STORE_WIDTH = 4
"""Numbers that say where a sequence's keys and values lie: addresses of both, positions filled, capacity."""

Run = Callable[[Tensor, Tensor, Sequence[Segment]], Tensor]
"""A network's step: ids (int64 ``[rows]``), positions ``[rows]``, segments -> logits ``[rows, vocab]``."""


class CapturedStep(Protocol):
    """A function that reads and writes tensors of fixed places, as one launch."""

    @property
    def warm_up_seconds(self) -> float:
        """Seconds that compiling and capturing took."""

    def launch(self) -> None:
        """Put it behind what the device was asked before."""

    def wait(self) -> None:
        """Until what was launched is done."""


class CapturedDecode(Protocol):
    """A decode step of ``rows`` sequences, one row each, and the id of each one's largest logit."""

    rows: int

    @property
    def warm_up_seconds(self) -> float:
        """Seconds that compiling and capturing took; 0 before the first step."""

    def launch(self, ids: Sequence[int], positions: Sequence[float], stores: Sequence[KeyValueStore]) -> None:
        """Start the step: ``ids`` at ``positions`` behind what the ``stores`` hold. They are not advanced."""

    def result(self) -> tuple[list[int], list[float]]:
        """Wait; of each row the id of the largest logit, and that logit (NaN where any is)."""

    @property
    def logits(self) -> Tensor:
        """Float logits ``[rows, vocab]`` of the last step, overwritten by the next."""


class DeviceStore:
    """A key-value store whose place and length stand in device memory, in row ``index`` of ``table`` (int64
    ``[stores, STORE_WIDTH]``), so that a captured step serves whatever stands there then."""

    length = 0

    def __init__(self, table: Tensor, index: int, dtype: torch.dtype) -> None:
        self.table, self.index, self.dtype = table, index, dtype

    def advance(self, rows: int) -> None:
        """Nothing: whoever writes the table counts."""

    def reserve(self, rows: int) -> tuple[Tensor, Tensor]:
        """Not known to the host."""
        raise AssertionError(f"{rows} rows of a device store were asked for by an operation that runs on the host")


def store_row(store: KeyValueStore, rows: int = 1) -> tuple[int, int, int, int]:
    """What the table says of a store of the host's, with space for ``rows`` more positions."""
    keys, values = store.reserve(rows)
    return keys.data_ptr(), values.data_ptr(), store.length, keys.shape[2]
