"""Keys and values on the device, where steps write them.

A row that a step made lies here alone until the host asks for it (`KeyValuePool.settle`): another cache that copies it,
an operation without a kernel. Rows that the host made are copied here before a step that looks at them. All sequences
share one pool of positions; each has a run of them.
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
    """Positions of one store: where they begin and how many; how many from the first on are right here (``here``), and
    how many on the host (``there``). The store's own length is at most the larger of the two."""

    start: int
    capacity: int
    here: int = 0
    there: int = 0


class KeyValuePool:
    """Of stores of ``layers`` layers, ``kv_heads`` and ``head_dim``, BF16. The backend says which rows steps here write
    (`place`), and which are written on the host (`wrote`)."""

    def __init__(self, gpu: Gpu, layers: int, kv_heads: int, head_dim: int) -> None:
        self._gpu, self._layers, self._heads, self._head_dim = gpu, layers, kv_heads, head_dim
        self._row_bytes = kv_heads * head_dim * 2
        self._runs: weakref.WeakKeyDictionary[KeyValueStore, _Run] = weakref.WeakKeyDictionary()
        self._capacity = 0
        self.generation = 0
        """Changes with the buffers."""
        self.uses = 0
        """Changes whenever rows may have been written."""
        self.keys: list[Buffer] = []
        self.values: list[Buffer] = []

    @property
    def layer_bytes(self) -> int:
        """Of the keys, or the values, of one layer."""
        return self._capacity * self._row_bytes

    def place(self, stores: Sequence[KeyValueStore], rows: Sequence[int]) -> list[int]:
        """Where each store's positions begin, with all its rows here and space for so many ``rows`` more, which the
        caller's step writes. LimitExceeded: more positions than a kernel can be given."""
        self.uses += 1
        held = [store.reserve(count) for store, count in zip(stores, rows, strict=True)]
        for store, (keys, _) in zip(stores, held, strict=True):
            run = self._runs.get(store)
            if run is None or run.capacity < keys.shape[2]:
                self._take_run(store, keys.shape[2])
        for store, count, (keys, values) in zip(stores, rows, held, strict=True):
            run = self._runs[store]
            self._copy_in(run, keys, values, store.length)
            self._count(run, store, count)
        return [self._runs[store].start for store in stores]

    def take(self, stores: Sequence[KeyValueStore]) -> None:
        """Count one row more of each, which a step that was submitted before writes."""
        self.uses += 1
        for store in set(stores):
            self._count(self._runs[store], store, 1)

    def _count(self, run: _Run, store: KeyValueStore, rows: int) -> None:
        run.here, run.there = store.length + rows, min(run.there, store.length)
        store.elsewhere = self

    def starts(self, stores: Sequence[KeyValueStore], rows: Sequence[int]) -> list[int] | None:
        """Where the positions of stores that were placed begin, if all have space for so many ``rows`` more."""
        runs = [self._runs[store] for store in stores]
        enough = all(store.length + more <= run.capacity for store, run, more in zip(stores, runs, rows, strict=True))
        return [run.start for run in runs] if enough else None

    @torch.inference_mode()  # tensors that were made in this mode can only be changed in it
    def settle(self, store: KeyValueStore) -> None:
        """Bring all rows of a store to the host."""
        run = self._runs.get(store)
        end = store.length if run is None else min(run.here, store.length)
        if run is None or run.there >= end:
            return
        first, rows = run.there, end - run.there
        tensors = store.reserve(0)
        nbytes = rows * self._row_bytes
        buffers = [*self.keys, *self.values]
        with self._gpu.lock:
            fetched = self._gpu.fetch([(each, (run.start + first) * self._row_bytes, nbytes) for each in buffers])
        made = torch.from_numpy(fetched).view(torch.bfloat16)
        made = made.view(2, self._layers, rows, self._heads, self._head_dim).transpose(2, 3)
        for tensor, part in zip(tensors, made, strict=True):
            tensor[:, :, first:end] = part
        run.there = end

    def wrote(self, store: KeyValueStore) -> None:
        """Rows from the store's length on are about to be written on the host, which has those before."""
        self.uses += 1
        self.settle(store)
        run = self._runs.get(store)
        if run is not None:
            run.here = min(run.here, store.length)
            run.there = max(store.length, run.there)

    def _copy_in(self, run: _Run, keys: Tensor, values: Tensor, length: int) -> None:
        first = min(run.here, length)
        if first == length:
            return
        offset = (run.start + first) * self._row_bytes
        for buffers, tensor in ((self.keys, keys), (self.values, values)):
            for buffer, layer in zip(buffers, tensor, strict=True):
                rows = layer[:, first:length].transpose(0, 1).contiguous()
                self._gpu.write(buffer, offset, rows.view(torch.int16).numpy())
        run.there = max(run.there, length)

    def _take_run(self, store: KeyValueStore, capacity: int) -> None:
        """A run for a store that has none, or one that is too short, whose rows move with it."""
        old = self._runs.get(store)
        start = self._free_start(capacity)
        run = _Run(start, capacity)
        if old is not None:
            run.here, run.there = min(old.here, store.length), old.there
            moved = [
                (each, old.start * self._row_bytes, start * self._row_bytes) for each in (*self.keys, *self.values)
            ]
            self._gpu.move(moved, run.here * self._row_bytes)
        self._runs[store] = run

    def _free_start(self, capacity: int) -> int:
        end = 0
        for run in sorted(self._runs.values(), key=lambda run: run.start):
            if run.start - end >= capacity:
                return end
            end = run.start + run.capacity
        if end + capacity > self._capacity:
            self._grow(end + capacity)
        return end

    def _grow(self, needed: int) -> None:
        """Larger buffers, with what was in those before."""
        most = self._gpu.binding_limit // self._row_bytes
        if needed > most:
            raise LimitExceeded(
                f"the wgpu backend holds {most} positions of keys and values but {needed} are needed; take a smaller "
                "max_context, or fewer requests at once"
            )
        capacity = min(max(needed, 2 * self._capacity, _FIRST_CAPACITY), most)
        nbytes = capacity * self._row_bytes
        # All of them first: without memory for one, what there was stays.
        keys, values = ([self._gpu.buffer(nbytes) for _ in range(self._layers)] for _ in range(2))
        for old, new in zip((*self.keys, *self.values), (*keys, *values), strict=False):  # at first there are none
            self._gpu.copy(old, new, self.layer_bytes)
        self.keys, self.values, self._capacity = keys, values, capacity
        self.generation += 1
