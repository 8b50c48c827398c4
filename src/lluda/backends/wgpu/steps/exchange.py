"""What the host writes before a step, and its submission."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

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
    something behind them."""

    def __init__(self, gpu: Gpu, step: Step) -> None:
        self._gpu, self.step = gpu, step
        self._numbers = np.zeros((step.rows, STATE), np.uint32)
        self._commands: dict[Hashable, Commands] = {}
        self._generation = -1
        self._ready: tuple[Sequence[Copy], Any] | None = None

    def start(
        self,
        places: Sequence[Place],
        table: RotaryTable,
        launches: Sequence[Launch],
        copies: Sequence[Copy],
        *,
        way: Hashable = 0,
    ) -> int:
        """Start the step for rows at ``places``, which are given the angles ``table [rows, head_dim / 2]``: the number
        of the submission. Their stores are not advanced. ``way`` names the launches, of which commands are made
        once; ``copies`` are to where the host reads."""
        rows = {place.store: 0 for place in places}
        for store, position in places:
            rows[store] = max(rows[store], position + 1 - store.length)
        starts = dict(zip(rows, self.step.layers.pool.place(list(rows), list(rows.values())), strict=True))
        positions = [place.position for place in places]
        return self.submit(positions, [starts[place.store] for place in places], table, launches, copies, way=way)

    def submit(
        self,
        positions: Sequence[int],
        starts: Sequence[int],
        table: RotaryTable,
        launches: Sequence[Launch],
        copies: Sequence[Copy],
        *,
        way: Hashable = 0,
    ) -> int:
        """The same for rows whose stores the pool has given a place, each with its position and where its run
        begins."""
        self._numbers[:, 0], self._numbers[:, 1] = positions, starts
        self._gpu.write(self.step.state, 0, self._numbers)
        self._gpu.write(self.step.turn.buffer, 0, torch.cat(table, dim=1).float().numpy())
        commands, ready = self._made(launches, way), self._ready
        self._ready = None
        return self._gpu.submit(ready[1] if ready and ready[0] == copies else commands.recorded(copies))

    def prepare(self, launches: Sequence[Launch], copies: Sequence[Copy]) -> None:
        """Record what is likely to be submitted next, while the device is at work."""
        self._ready = copies, self._made(launches, 0).recorded(copies)

    def _made(self, launches: Sequence[Launch], way: Hashable) -> Commands:
        """Made anew when the pool's buffers are others."""
        generation = self.step.layers.pool.generation
        if self._generation != generation:
            self._commands.clear()
            self._generation = generation
            self._ready = None
        if way not in self._commands:
            self._commands[way] = Commands(self._gpu, launches)
        return self._commands[way]
