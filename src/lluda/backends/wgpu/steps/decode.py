"""A decode step as the engine launches it: ids in, the ids that it chose out.

The device writes the ids it chose to where the next step reads them. So where the engine is seen to go on with what was
chosen, the next step is submitted before this one's ids have come to the host, and the device never waits for it. A
step that was submitted and is not wanted has written a row behind all that its sequences hold, where nobody looks.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lluda.backends.batch import KeyValueStore
from lluda.backends.capture import RowSampling
from lluda.backends.components import Rotary
from lluda.backends.executor.operations import RotaryTable
from lluda.backends.wgpu.gpu import Buffer, Gpu
from lluda.backends.wgpu.steps.choice import SampledChoice
from lluda.backends.wgpu.steps.exchange import Exchange
from lluda.backends.wgpu.steps.launch import Copy
from lluda.backends.wgpu.steps.step import Step
from lluda.backends.wgpu.wgsl.sampling import LEFT_TO_HOST

Angles = Callable[[Tensor, Rotary], RotaryTable]


@dataclass(slots=True)
class _Launched:
    """A step under way: where its rows are, and where its result will be. ``tokens`` once they are known."""

    positions: Sequence[float]
    stores: list[weakref.ref[KeyValueStore]]
    lengths: list[int]
    uses: int
    """The pool's, when it was submitted."""
    result: Buffer
    submission: int
    ids: Sequence[int] | None
    """None while the device alone knows them."""
    moved: list[bool] = field(default_factory=list)
    """Of a step that went out before the one before it had answered: what `moves` must say of it."""
    tokens: list[int] = field(default_factory=list)

    def moves(
        self, ids: Sequence[int], positions: Sequence[float], stores: Sequence[KeyValueStore]
    ) -> list[bool] | None:
        """Of each row of a step whether it is the next of its sequence, with the token that this one chose, or else the
        same row again, as those are that fill up a step. None: one is neither."""
        found = []
        for row, (store, token, position) in enumerate(zip(stores, ids, positions, strict=True)):
            length, before = self.lengths[row], self.positions[row]
            is_next = (store.length, token, position) == (length + 1, self.tokens[row], before + 1)
            is_same = self.ids is not None and (store.length, token, position) == (length, self.ids[row], before)
            if self.stores[row]() is not store or not (is_next or is_same):
                return None
            found.append(is_next)
        return found


class WgpuDecode:
    """Implements ``backends.capture.CapturedDecode``. ``angles`` makes cosines and sines of positions; ``logits`` are
    float ``[rows, vocabulary]``; ``choice``: how tokens are chosen, None: the largest logit's."""

    def __init__(
        self,
        gpu: Gpu,
        step: Step,
        angles: Angles,
        logits: Buffer,
        vocabulary: int,
        *,
        choice: SampledChoice | None = None,
        warm_up_seconds: float,
    ) -> None:
        self._gpu, self._step, self._angles = gpu, step, angles
        self._exchange = Exchange(gpu, step)
        self._on_device, self._vocabulary = logits, vocabulary
        self._on_host = gpu.buffer(logits.nbytes, readable=True)
        self._results = [gpu.buffer(step.chosen.nbytes, readable=True) for _ in range(2)]
        self._choice = choice
        self._logits: Tensor | None = None
        self._reads_logits = False
        self._current: _Launched | None = None
        self._ahead: _Launched | None = None
        self.rows, self.warm_up_seconds = step.rows, warm_up_seconds
        self.submitted = 0
        """Steps so far, with those that were not wanted."""

    @property
    def launches(self) -> int:
        """Kernels of a step."""
        return len(self._step.launches)

    def launch(
        self,
        ids: Sequence[int],
        positions: Sequence[float],
        stores: Sequence[KeyValueStore],
        sampling: Sequence[RowSampling] = (),
    ) -> None:
        """Start the step: ``ids`` at ``positions`` behind what the ``stores`` hold. They are not advanced."""
        self._reads_logits, self._logits = self._logits is not None, None
        with self._gpu.lock:
            before, ahead = self._current, self._ahead
            moved = before.moves(ids, positions, stores) if before is not None and before.tokens else None
            self._ahead = None
            if ahead is not None and ahead.moved == moved and ahead.uses == self._step.layers.pool.uses:
                ahead.ids = list(ids)
                self._current = ahead
                self._step.layers.pool.take(stores)
            else:
                if self._choice is not None:
                    self._choice.write(sampling, ids)
                self._current = self._start(ids, positions, stores)
            if self._choice is not None:
                self._exchange.prepare(self._step.launches, self._copies(self._results[1]))
            elif moved and not self._reads_logits:
                self._ahead = self._start_ahead(stores, moved)

    def result(self) -> tuple[list[int], list[float]]:
        """Wait; of each row the id chosen, or -1 where the host must choose, and the largest logit or score (NaN where
        any logit is)."""
        current = self._current
        assert current is not None, "a result is asked for once a step is launched"
        with self._gpu.lock:
            raw = self._gpu.read(current.result, 8 * self.rows, current.submission)
        chosen = raw.view(np.uint32).reshape(self.rows, 2)
        current.tokens = chosen[:, 1].tolist()
        tokens = [-1 if token == LEFT_TO_HOST else token for token in current.tokens]
        return tokens, floats_of(chosen[:, 0]).tolist()

    @property
    def logits(self) -> Tensor:
        """Float logits ``[rows, vocab]`` of the last step, overwritten by the next."""
        if self._logits is None:
            with self._gpu.lock:
                self._restore()
                self._gpu.copy(self._on_device, self._on_host, self._on_device.nbytes)
                raw = self._gpu.read(self._on_host, 4 * self.rows * self._vocabulary)
            self._logits = torch.from_numpy(raw.view(np.float32).reshape(self.rows, -1))
        return self._logits

    def _start(self, ids: Sequence[int], positions: Sequence[float], stores: Sequence[KeyValueStore]) -> _Launched:
        lengths = [store.length for store in stores]
        pool = self._step.layers.pool
        rows = dict.fromkeys(stores, 1)
        starts = dict(zip(rows, pool.place(list(rows), list(rows.values())), strict=True))
        self._gpu.write(self._step.ids, 0, np.array(ids, np.uint32))
        return self._submit(list(ids), positions, stores, lengths, [starts[store] for store in stores])

    def _start_ahead(self, stores: Sequence[KeyValueStore], moved: list[bool]) -> _Launched | None:
        """The step behind the current one, if its rows have space: of rows that ``moved`` the next, of others the same
        again."""
        current = self._current
        assert current is not None and current.ids is not None
        starts = self._step.layers.pool.starts(stores, [1 + each for each in moved])
        if starts is None:
            return None
        for row, moves in enumerate(moved):
            if not moves:
                self._gpu.write(self._step.ids, 4 * row, np.array(current.ids[row], np.uint32))
        positions = [each + moves for each, moves in zip(current.positions, moved, strict=True)]
        lengths = [store.length + moves for store, moves in zip(stores, moved, strict=True)]
        ahead = self._submit(None, positions, stores, lengths, starts)
        ahead.moved = moved
        return ahead

    def _submit(
        self,
        ids: Sequence[int] | None,
        positions: Sequence[float],
        stores: Sequence[KeyValueStore],
        lengths: list[int],
        starts: Sequence[int],
    ) -> _Launched:
        self._results.reverse()
        result = self._results[0]
        table = self._angles(torch.tensor(positions), self._step.turn.rotary)
        submission = self._exchange.submit(lengths, starts, table, self._step.launches, self._copies(result))
        self.submitted += 1
        uses = self._step.layers.pool.uses
        return _Launched(positions, [weakref.ref(store) for store in stores], lengths, uses, result, submission, ids)

    def _copies(self, result: Buffer) -> list[Copy]:
        return [(self._step.chosen, result, self._step.chosen.nbytes)]

    def _restore(self) -> None:
        """The current step's logits where the next step's are: it is computed once more."""
        current, ahead = self._current, self._ahead
        if current is None or ahead is None:
            return
        self._ahead = None
        stores = [store for store in (each() for each in current.stores) if store is not None]
        starts = self._step.layers.pool.starts(stores, [0] * len(stores))
        assert current.ids is not None and starts is not None, "of a step whose result was taken"
        self._gpu.write(self._step.ids, 0, np.array(current.ids, np.uint32))
        self._current = self._submit(current.ids, current.positions, stores, current.lengths, starts)
        self._current.tokens = current.tokens


def floats_of(keys: NDArray[np.uint32]) -> NDArray[np.float32]:
    """The logits that `wgsl.argmax` made keys of."""
    return np.where(keys < 0x80000000, ~keys, keys & 0x7FFFFFFF).astype(np.uint32).view(np.float32)
