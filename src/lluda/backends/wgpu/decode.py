"""A decode step on the device: what the host writes before it and reads after it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lluda.backends.batch import KeyValueStore
from lluda.backends.capture import ARGMAX, RowSampling
from lluda.backends.components import Rotary
from lluda.backends.executor.operations import RotaryTable
from lluda.backends.wgpu.gpu import Gpu
from lluda.backends.wgpu.launch import Commands
from lluda.backends.wgpu.step import Step
from lluda.backends.wgpu.wgsl.attention import STATE

Angles = Callable[[Tensor, Rotary], RotaryTable]


class WgpuDecode:
    """Implements ``backends.capture.CapturedDecode``. ``angles`` makes cosines and sines of positions. The device knows
    the largest logit alone: of rows that are sampled otherwise it leaves the choice to the host."""

    def __init__(self, gpu: Gpu, step: Step, angles: Angles, *, warm_up_seconds: float) -> None:
        self._gpu, self._step, self._angles = gpu, step, angles
        self._commands: Commands | None = None
        self._generation = -1
        self._result = gpu.buffer(step.outputs.nbytes, readable=True)
        self._logits_host = gpu.buffer(step.logits.nbytes, readable=True)
        self._numbers = np.zeros((step.rows, STATE), np.uint32)
        self._written: list[tuple[Tensor, Tensor, int]] = []
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
        step = self._step
        self._left_to_host = [settings != ARGMAX for settings in sampling]
        self._logits = None
        with self._gpu.lock:
            pool = step.layers.pool
            starts = pool.place(stores)
            commands = self._made(pool.generation)
            self._numbers[:, 0] = [store.length for store in stores]
            self._numbers[:, 1], self._numbers[:, 2] = starts, ids
            self._gpu.write(step.state, 0, self._numbers)
            table = self._angles(torch.tensor(positions), step.turn.rotary)
            self._gpu.write(step.turn.buffer, 0, torch.cat(table, dim=1).float().contiguous().numpy())
            self._gpu.submit(commands.recorded())
            self._written = [(*store.reserve(1), store.length) for store in stores]

    def result(self) -> tuple[list[int], list[float]]:
        """Wait; of each row the id of the largest logit, or -1 where the host chooses, and that logit (NaN where any
        is)."""
        rows = self.rows
        with self._gpu.lock:
            outputs = self._gpu.read(self._result, self._step.outputs.nbytes)
        chosen = outputs[: 8 * rows].view(np.uint32).reshape(rows, 2)
        self._store_fresh(outputs)
        tokens = [int(each) for each in chosen[:, 1]]
        for row, left in enumerate(self._left_to_host):
            tokens[row] = -1 if left else tokens[row]
        return tokens, _floats(chosen[:, 0]).tolist()

    @property
    def logits(self) -> Tensor:
        """Float logits ``[rows, vocab]`` of the last step, overwritten by the next."""
        if self._logits is None:
            nbytes = 4 * self.rows * self._step.vocabulary
            with self._gpu.lock:
                self._gpu.copy(self._step.logits, self._logits_host, self._step.logits.nbytes)
                raw = self._gpu.read(self._logits_host, nbytes)
            self._logits = torch.from_numpy(raw.view(np.float32).reshape(self.rows, -1).copy())
        return self._logits

    def recorded(self) -> object:
        """The step's commands, recorded anew and not submitted (to measure)."""
        assert self._commands is not None, "nothing was launched"
        return self._commands.recorded()

    def _made(self, generation: int) -> Commands:
        """Made anew when the pool's buffers are others."""
        if self._commands is None or self._generation != generation:
            started = time.perf_counter()
            copies = [(self._step.outputs, self._result, self._step.outputs.nbytes)]
            self._commands = Commands(self._gpu, self._step.launches, copies)
            self._generation = generation
            self.warm_up_seconds += time.perf_counter() - started
        return self._commands

    def _store_fresh(self, outputs: NDArray[np.uint8]) -> None:
        """The new keys and values, into the stores on the host."""
        layers = self._step.layers
        heads, rows = layers.heads, self.rows
        used = rows * 2 * heads.kv_heads * heads.head_dim * 2
        end = self._step.fresh_at + layers.count * layers.block_bytes
        blocks = outputs[self._step.fresh_at : end].reshape(layers.count, -1)[:, :used]
        shape = (layers.count, rows, 2, heads.kv_heads, heads.head_dim)
        fresh = torch.from_numpy(blocks.copy()).view(torch.bfloat16).view(shape)
        for row, (keys, values, length) in enumerate(self._written):
            keys[:, :, length] = fresh[:, row, 0]
            values[:, :, length] = fresh[:, row, 1]


def _floats(keys: NDArray[np.uint32]) -> NDArray[np.float32]:
    """The logits that `wgsl.argmax` made keys of."""
    negative = keys < 0x80000000
    return np.where(negative, ~keys, keys & 0x7FFFFFFF).astype(np.uint32).view(np.float32)
