"""What the host writes before a step and reads after it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lluda.backends.batch import KeyValueStore
from lluda.backends.executor.operations import RotaryTable
from lluda.backends.wgpu.gpu import Gpu
from lluda.backends.wgpu.steps.launch import Commands, Copy, Launch
from lluda.backends.wgpu.steps.step import Step
from lluda.backends.wgpu.wgsl.attention import STATE


class Place(NamedTuple):
    """Of a row: the store of its sequence, and its position in it."""

    store: KeyValueStore
    position: int


def next_places(stores: Iterable[KeyValueStore]) -> list[Place]:
    """Of one row for each store, behind what it holds."""
    return [Place(store, store.length) for store in stores]


class Exchange:
    """Of one step, which is launched in one of several ways (``launches``, by name): each is the same layers with
    something behind them, and ``copies`` to where the host reads."""

    def __init__(self, gpu: Gpu, step: Step) -> None:
        self._gpu, self.step = gpu, step
        self._result = gpu.buffer(step.outputs.nbytes, readable=True)
        self._numbers = np.zeros((step.rows, STATE), np.uint32)
        self._written: list[tuple[Tensor, Tensor, int]] = []
        self._commands: dict[int, Commands] = {}
        self._generation = -1

    def start(
        self,
        places: Sequence[Place],
        table: RotaryTable,
        launches: Sequence[Launch],
        copies: Sequence[Copy],
        *,
        ids: Sequence[int] | int = 0,
        way: int = 0,
    ) -> None:
        """Start the step for rows at ``places``, which are given the angles ``table [rows, head_dim / 2]``. Their
        stores are not advanced. ``way`` names launches and copies, of which commands are made once."""
        step = self.step
        rows = {place.store: 0 for place in places}
        for store, position in places:
            rows[store] = max(rows[store], position + 1 - store.length)
        starts = dict(zip(rows, step.layers.pool.place(list(rows), list(rows.values())), strict=True))
        self._numbers[:, 0] = [place.position for place in places]
        self._numbers[:, 1] = [starts[place.store] for place in places]
        self._numbers[:, 2] = ids
        self._gpu.write(step.state, 0, self._numbers)
        self._gpu.write(step.turn.buffer, 0, torch.cat(table, dim=1).float().numpy())
        self._gpu.submit(self._made(launches, copies, way).recorded())
        buffers = {store: store.reserve(count) for store, count in rows.items()}
        self._written = [(*buffers[place.store], place.position) for place in places]

    def finish(self) -> NDArray[np.uint8]:
        """Wait, and write the new keys and values into the stores on the host. The outputs."""
        outputs = self._gpu.read(self._result, self.step.outputs.nbytes)
        layers, rows = self.step.layers, self.step.rows
        heads = layers.heads
        end = self.step.fresh_at + layers.count * layers.block_bytes
        used = rows * 2 * heads.kv_heads * heads.head_dim * 2
        blocks = outputs[self.step.fresh_at : end].reshape(layers.count, -1)[:, :used].copy()
        fresh = torch.from_numpy(blocks).view(torch.bfloat16)
        fresh = fresh.view(layers.count, rows, 2, heads.kv_heads, heads.head_dim)
        for row, (keys, values, length) in enumerate(self._written):
            keys[:, :, length] = fresh[:, row, 0]
            values[:, :, length] = fresh[:, row, 1]
        return outputs

    def _made(self, launches: Sequence[Launch], copies: Sequence[Copy], way: int) -> Commands:
        """Made anew when the pool's buffers are others."""
        generation = self.step.layers.pool.generation
        if self._generation != generation:
            self._commands.clear()
            self._generation = generation
        if way not in self._commands:
            outputs = (self.step.outputs, self._result, self.step.outputs.nbytes)
            self._commands[way] = Commands(self._gpu, launches, [outputs, *copies])
        return self._commands[way]
