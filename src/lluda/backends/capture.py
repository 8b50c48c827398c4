"""Captured steps: what a function puts on a device, recorded once and launched again as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lluda.backends.batch import KeyValueStore, RowsElsewhere, Segment
from lluda.backends.weight import Weight

STORE_WIDTH = 4
"""Numbers that say where a sequence's keys and values lie: addresses of both, positions filled, capacity."""

Run = Callable[[Tensor, Tensor, Sequence[Segment]], Tensor]
"""A network's step: ids (int64 ``[rows]``), positions ``[rows]``, segments -> logits ``[rows, vocab]``."""


SAMPLING_NUMBERS, SAMPLING_WIDTH = 8, 11
"""Of a `RowSampling`, its settings' among them: how many come before the addresses (as float64), and how many there are
(the rest as int64)."""

MOST_KEPT = 64
"""Largest top-k that a captured step chooses by."""


class RowSettings(NamedTuple):
    """What all tokens of an answer are chosen by, after the definition in engine/sampling/sampler.py: all of the
    vocabulary is a top-k too, the argmax is a top-k of 1."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition: float
    presence: float
    frequency: float


class RowSampling(NamedTuple):
    """How a captured step chooses the token of one row: by its answer's settings and a number drawn from [0, 1).

    ``occurrences`` and ``addends`` are addresses on the device, 0 for none: int32 ``[vocab]``, twice how often an id
    came in the answer, and 1 more if it came in the prompt; float32 ``[vocab]``, added after the penalties. ``fed`` is
    what stands in the first for the token that this step is given, once that is counted."""

    settings: RowSettings
    uniform: float
    occurrences: int = 0
    addends: int = 0
    fed: int = 0


ARGMAX = RowSampling(RowSettings(1.0, 1, 1.0, 0.0, 1.0, 0.0, 0.0), 0.0)
"""The first id of the largest logit."""

RowChoice = tuple[int, float] | Tensor
"""A token chosen on the device and the row's largest score (NaN or infinity where a logit is); or the float logits
``[vocab]`` to choose from."""


class SaidCodes(NamedTuple):
    """Which codes each of several answers has said, uint8 ``[answers, codes]``, and whose each row of a step is (int64
    ``[rows]``)."""

    marks: Tensor
    answers: Tensor


class CodeRows(NamedTuple):
    """Where the rows of ``table`` go that a step's codes choose: to ``rows [rows, width]`` (float32, of any row
    stride), and added to ``total [rows, width]`` (float32), which they are the first of where it ``begins``."""

    table: Weight
    rows: Tensor
    total: Tensor
    begins: bool


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
    """A decode step of ``rows`` sequences, one row each, and the id chosen of each: of the largest logit, or
    (``sampled``) by each row's settings."""

    rows: int

    @property
    def warm_up_seconds(self) -> float:
        """Seconds that compiling and capturing took; 0 before the first step."""

    def launch(
        self,
        ids: Sequence[int],
        positions: Sequence[float],
        stores: Sequence[KeyValueStore],
        sampling: Sequence[RowSampling] = (),
    ) -> None:
        """Start the step: ``ids`` at ``positions`` behind what the ``stores`` hold, which are not advanced.
        ``sampling``: of each row, where it is sampled."""

    def result(self) -> tuple[list[int], list[float]]:
        """Wait; of each row the id chosen (-1 where it must be chosen from the logits), and the largest logit or score
        (NaN where any logit is)."""

    @property
    def logits(self) -> Tensor:
        """Float logits ``[rows, vocab]`` of the last step, overwritten by the next."""


class DeviceStore:
    """A key-value store whose place and length stand in device memory, in row ``index`` of ``table`` (int64
    ``[stores, STORE_WIDTH]``), so that a captured step serves whatever stands there then. ``most``: positions that will
    ever stand there at most, where that is known."""

    length = 0
    elsewhere: RowsElsewhere | None = None

    def __init__(self, table: Tensor, index: int, dtype: torch.dtype, most: int | None = None) -> None:
        self.table, self.index, self.dtype, self.most = table, index, dtype, most

    def advance(self, rows: int) -> None:
        """Nothing: whoever writes the table counts."""

    def reserve(self, rows: int) -> tuple[Tensor, Tensor]:
        """Not known to the host."""
        raise AssertionError(f"{rows} rows of a device store were asked for by an operation that runs on the host")


class PromptStore(DeviceStore):
    """The same of one sequence whose next rows are a prompt's; behind its place in ``table`` (int64 ``[1, STORE_WIDTH +
    1]``) stands how many of the step's rows are real: others fill up a captured step and are not stored."""


class StreamContexts:
    """What the convolutions of up to ``streams`` streams of a vocoder keep of their past, in places that do not
    change: of each convolution twice, one that a frame reads and one that it writes, which are the other way round for
    the next frame."""

    def __init__(self, streams: int) -> None:
        self.streams = streams
        self._contexts: dict[object, Tensor] = {}

    def of(self, convolution: object, like: Tensor, count: int, dtype: torch.dtype) -> Tensor:
        """Of its last ``count`` input rows ``[2, streams, count, channels]``, with the channels and device of
        ``like``."""
        if convolution not in self._contexts:
            shape = 2, self.streams, count, like.shape[-1]
            self._contexts[convolution] = torch.zeros(shape, dtype=dtype, device=like.device)
        return self._contexts[convolution]


@dataclass(frozen=True, slots=True, eq=False)
class StreamRows:
    """Whose next frames a step of the vocoder makes: for each row the number of its stream and how many frames of it
    went before (int64 ``[rows]``, on the device), and where its decoder's keys and values lie."""

    streams: Tensor
    frames: Tensor
    segments: Sequence[Segment]
    contexts: StreamContexts


def store_row(store: KeyValueStore, rows: int = 1) -> tuple[int, int, int, int]:
    """What the table says of a store of the host's, with space for ``rows`` more positions."""
    keys, values = store.reserve(rows)
    return keys.data_ptr(), values.data_ptr(), store.length, keys.shape[2]
