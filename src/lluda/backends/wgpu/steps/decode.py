"""A decode step as the engine launches it: ids in, the ids of the largest logits out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lluda.backends.batch import KeyValueStore
from lluda.backends.capture import ARGMAX, RowSampling
from lluda.backends.components import Rotary
from lluda.backends.executor.operations import RotaryTable
from lluda.backends.wgpu.gpu import Buffer, Gpu
from lluda.backends.wgpu.steps.exchange import Exchange, next_places
from lluda.backends.wgpu.steps.step import Step

Angles = Callable[[Tensor, Rotary], RotaryTable]


class WgpuDecode:
    """Implements ``backends.capture.CapturedDecode``. ``angles`` makes cosines and sines of positions; ``logits`` are
    float ``[rows, vocabulary]``. The device knows the largest logit alone: of rows that are sampled otherwise it leaves
    the choice to the host."""

    def __init__(
        self, gpu: Gpu, step: Step, angles: Angles, logits: Buffer, vocabulary: int, *, warm_up_seconds: float
    ) -> None:
        self._gpu, self._step, self._angles = gpu, step, angles
        self._exchange = Exchange(gpu, step)
        self._on_device, self._vocabulary = logits, vocabulary
        self._on_host = gpu.buffer(logits.nbytes, readable=True)
        self._left_to_host: list[bool] = []
        self._logits: Tensor | None = None
        self.rows, self.warm_up_seconds = step.rows, warm_up_seconds

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
        self._left_to_host = [settings != ARGMAX for settings in sampling]
        self._logits = None
        with self._gpu.lock:
            table = self._angles(torch.tensor(positions), self._step.turn.rotary)
            self._exchange.start(next_places(stores), table, self._step.launches, (), ids=ids)

    def result(self) -> tuple[list[int], list[float]]:
        """Wait; of each row the id of the largest logit, or -1 where the host chooses, and that logit (NaN where any
        is)."""
        with self._gpu.lock:
            outputs = self._exchange.finish()
        chosen = outputs[: 8 * self.rows].view(np.uint32).reshape(self.rows, 2)
        tokens = [int(each) for each in chosen[:, 1]]
        for row, left in enumerate(self._left_to_host):
            tokens[row] = -1 if left else tokens[row]
        return tokens, floats_of(chosen[:, 0]).tolist()

    @property
    def logits(self) -> Tensor:
        """Float logits ``[rows, vocab]`` of the last step, overwritten by the next."""
        if self._logits is None:
            with self._gpu.lock:
                self._gpu.copy(self._on_device, self._on_host, self._on_device.nbytes)
                raw = self._gpu.read(self._on_host, 4 * self.rows * self._vocabulary)
            self._logits = torch.from_numpy(raw.view(np.float32).reshape(self.rows, -1).copy())
        return self._logits


def floats_of(keys: NDArray[np.uint32]) -> NDArray[np.float32]:
    """The logits that `wgsl.argmax` made keys of."""
    return np.where(keys < 0x80000000, ~keys, keys & 0x7FFFFFFF).astype(np.uint32).view(np.float32)
