"""How the rows of a step are sampled: their settings, and the tables that their answers have."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lluda.backends.capture import ARGMAX, RowSampling
from lluda.backends.sampling_table import number_of
from lluda.backends.wgpu.gpu import Buffer, Gpu
from lluda.backends.wgpu.steps.launch import Launch, whole
from lluda.backends.wgpu.wgsl import sampling as kernels


class SampledChoice:
    """Of a step of so many ``rows``."""

    def __init__(self, gpu: Gpu, rows: int) -> None:
        self._gpu, self._rows = gpu, rows
        self._settings = gpu.buffer(4 * kernels.WIDTH * rows)
        self._numbers = np.zeros((rows, kernels.WIDTH), np.uint32)
        self._occurrences: _Tables | None = None
        self._addends: _Tables | None = None

    def launches(self, logits: Buffer, ids: Buffer, chosen: Buffer, vocabulary: int) -> list[Launch]:
        """Behind the head: of float ``logits [rows, vocabulary]`` the keys and tokens ``chosen [rows]``, and the ids of
        the next step."""
        gpu, rows = self._gpu, self._rows
        self._occurrences, self._addends = (_Tables(gpu, rows, vocabulary) for _ in range(2))
        scored = gpu.buffer(4 * rows * vocabulary)
        found = gpu.buffer(4 * rows * kernels.PARTS * kernels.PART_WIDTH)
        given = [logits, ids, self._settings, self._occurrences.buffer, self._addends.buffer, scored, found]
        chooses = [scored, found, self._settings, chosen, ids]
        return [
            Launch(kernels.scores(vocabulary), tuple(map(whole, given)), (kernels.PARTS, rows, 1)),
            Launch(kernels.choose(vocabulary), tuple(map(whole, chooses)), (1, rows, 1)),
        ]

    def write(self, sampling: Sequence[RowSampling], ids: Sequence[int]) -> None:
        """For the next step, which is given ``ids``; these are counted in the answers' tables on the host too."""
        assert self._occurrences is not None and self._addends is not None, "a step is written down first"
        sampling = sampling or [ARGMAX] * self._rows
        floats = self._numbers.view(np.float32)
        for row, (settings, *_) in enumerate(sampling):
            floats[row, :7] = settings
            self._numbers[row, 1] = settings.top_k
        floats[:, 7] = [each.uniform for each in sampling]
        for each, token in zip(sampling, ids, strict=True):
            if each.occurrences:
                ctypes.c_int32.from_address(each.occurrences + 4 * token).value = each.fed
        self._numbers[:, 8] = self._occurrences.places([each.occurrences for each in sampling])
        self._numbers[:, 9] = self._addends.places([each.addends for each in sampling])
        self._numbers[:, 10] = [each.fed for each in sampling]
        self._gpu.write(self._settings, 0, self._numbers)


class _Tables:
    """Tables of the host, ``[count, vocabulary]`` of 4 bytes each: as many as a step has rows."""

    def __init__(self, gpu: Gpu, count: int, vocabulary: int) -> None:
        self._gpu, self._vocabulary = gpu, vocabulary
        self.buffer = gpu.buffer(4 * count * vocabulary)
        self._held: list[tuple[int, int] | None] = [None] * count
        """Of each place the address and the number of the table that it has."""

    def places(self, addresses: Sequence[int]) -> list[int]:
        """1 + the place of each table, which is copied there if it is not; 0 for address 0."""
        wanted = [(address, number_of(address, self._vocabulary)) if address else None for address in addresses]
        found = []
        for table in wanted:
            if table is not None and table not in self._held:
                place = next(index for index, held in enumerate(self._held) if held is None or held not in wanted)
                self._gpu.write(self.buffer, 4 * place * self._vocabulary, self._content(table[0]))
                self._held[place] = table
            found.append(0 if table is None else 1 + self._held.index(table))
        return found

    def _content(self, address: int) -> NDArray[np.uint32]:
        words = (ctypes.c_uint32 * self._vocabulary).from_address(address)
        return np.ctypeslib.as_array(words)
