"""Keys and values on the device: a copy of what the host's stores hold.

A store's tensors on the host stay the truth, since some rows are made there: those that are new are copied to the
device before a step, and those that a step makes come back with its result. All sequences share one pool of positions;
each has a run of them.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lluda.backends.batch import KeyValueStore
from lluda.backends.wgpu.gpu import Buffer, Gpu
from lluda.errors import LimitExceeded

_FIRST_CAPACITY = 512


@dataclass(slots=True)
class _Run:
    """Positions of one store: where they begin, how many, and how many from the first on are as on the host."""

    start: int
    capacity: int
    valid: int = 0


class KeyValuePool:
    """Of stores of ``layers`` layers, ``kv_heads`` and ``head_dim``, BF16. A store's rows are written by steps of the
    backend, which says so (`wrote`), or copied into it while it is new."""

    def __init__(self, gpu: Gpu, layers: int, kv_heads: int, head_dim: int) -> None:
        self._gpu, self._layers, self._row = gpu, layers, kv_heads * head_dim
        self._runs: weakref.WeakKeyDictionary[KeyValueStore, _Run] = weakref.WeakKeyDictionary()
        self._capacity = 0
        self.generation = 0
        """Changes with the buffers."""
        self.keys: list[Buffer] = []
        self.values: list[Buffer] = []

    @property
    def layer_bytes(self) -> int:
        """Of the keys, or the values, of one layer."""
        return self._capacity * self._row * 2

    def place(self, stores: Sequence[KeyValueStore], rows: Sequence[int]) -> list[int]:
        """Where each store's positions begin, with all its rows there and space for so many ``rows`` more, which the
        caller's step stores. LimitExceeded: more positions than a kernel can be given."""
        held = [store.reserve(count) for store, count in zip(stores, rows, strict=True)]
        for store, (keys, _) in zip(stores, held, strict=True):
            run = self._runs.get(store)
            if run is None or run.capacity < keys.shape[2]:
                self._runs.pop(store, None)
                self._runs[store] = self._free_run(keys.shape[2])
        for store, count, (keys, values) in zip(stores, rows, held, strict=True):
            run = self._runs[store]
            self._copy_in(run, keys, values, store.length)
            run.valid = store.length + count
        return [self._runs[store].start for store in stores]

    def wrote(self, store: KeyValueStore) -> None:
        """Rows from the store's length on are about to be written on the host."""
        run = self._runs.get(store)
        if run is not None:
            run.valid = min(run.valid, store.length)

    def _copy_in(self, run: _Run, keys: Tensor, values: Tensor, length: int) -> None:
        first = min(run.valid, length)
        if first == length:
            return
        offset = (run.start + first) * self._row * 2
        for buffers, tensor in ((self.keys, keys), (self.values, values)):
            for buffer, layer in zip(buffers, tensor, strict=True):
                rows = layer[:, first:length].transpose(0, 1).contiguous()
                self._gpu.write(buffer, offset, rows.view(torch.int16).numpy())

    def _free_run(self, capacity: int) -> _Run:
        end = 0
        for run in sorted(self._runs.values(), key=lambda run: run.start):
            if run.start - end >= capacity:
                return _Run(end, capacity)
            end = run.start + run.capacity
        if end + capacity > self._capacity:
            self._grow(end + capacity)
        return _Run(end, capacity)

    def _grow(self, needed: int) -> None:
        """New buffers; their content comes from the host."""
        most = self._gpu.binding_limit // (self._row * 2)
        if needed > most:
            raise LimitExceeded(
                f"the wgpu backend holds {most} positions of keys and values but {needed} are needed; take a smaller "
                "max_context, or fewer requests at once"
            )
        self._capacity = min(max(needed, 2 * self._capacity, _FIRST_CAPACITY), most)
        self.keys.clear()
        self.values.clear()
        for buffers in (self.keys, self.values):
            buffers += [self._gpu.buffer(self.layer_bytes) for _ in range(self._layers)]
        for run in self._runs.values():
            run.valid = 0
        self.generation += 1
