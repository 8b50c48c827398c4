"""Matrices on the device: those that one product reads lie in one buffer, made when a step first needs them.

One buffer for what a product reads (queries, keys and values; gate and up; all experts of a layer) makes a few hundred
of them for any model. What is larger than a kernel can be given at once is cut by rows into parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lluda.backends.executor.q8_weight import Q8Weight
from lluda.backends.exponent_codes import best_offset, exponent_counts
from lluda.backends.weight import DenseWeight, Weight
from lluda.backends.wgpu.gpu import Buffer, Gpu
from lluda.backends.wgpu.memory.packing import PackedRows, pack_rows, packed_row_bytes, side_words
from lluda.backends.wgpu.memory.repacking import StoredRows, exponents_of, repack
from lluda.backends.wgpu.weight import NoKernel, PackedWeight, form_name, plain
from lluda.formats.q8_0 import BLOCK, BLOCK_BYTES

Joined = tuple[Weight, ...]
"""Matrices one below the other: queries, keys and values."""

Layout = tuple[tuple[Joined, ...], ...]
"""Of each expert (one, where there are none) the matrices of which a part has the same rows: gate and up, or one."""

Piece = Weight | StoredRows
"""Rows on their way to the device."""

_AT_ONCE = 1 << 22
"""Weights that are read or coded at once, so that what is needed beside them stays small."""


@dataclass(frozen=True, slots=True)
class Part:
    """Rows ``first`` to ``first + rows`` of every matrix of a layout, expert by expert. ``nbytes`` of ``body``."""

    first: int
    rows: int
    body: Buffer
    nbytes: int
    side: Buffer | None


@dataclass(frozen=True, slots=True)
class Matrix:
    """A layout on the device: form (`wgsl.forms.FORMS`), rows of one of its matrices, columns, parts."""

    form: str
    rows: int
    columns: int
    parts: tuple[Part, ...]


class Matrices:
    """What of a model's matrices and vectors is on the device. ``packed``: BF16 ones are packed on the way."""

    def __init__(self, gpu: Gpu, *, packed: bool) -> None:
        self._gpu, self.packed = gpu, packed
        self._made: dict[Layout, Matrix] = {}
        self._vectors: dict[tuple[int, ...], tuple[Sequence[Tensor], Buffer]] = {}
        self._wrapped: dict[tuple[int, ...], tuple[Sequence[Tensor], DenseWeight]] = {}
        self._widened: dict[int, tuple[Weight, DenseWeight]] = {}
        self.forms: set[str] = set()
        """Forms that matrices have here."""

    def matrix(self, layout: Layout) -> Matrix:
        """Uploaded once. NoKernel: its matrices have different forms, or one there is no kernel for."""
        if layout not in self._made:
            self._made[layout] = self._upload(layout)
        return self._made[layout]

    def vectors(self, *tensors: Tensor) -> Buffer:
        """Float vectors one behind the other."""
        key = tuple(map(id, tensors))
        if key not in self._vectors:
            data = np.concatenate([tensor.float().reshape(-1).numpy() for tensor in tensors])
            buffer = self._gpu.buffer(data.nbytes)
            self._gpu.write(buffer, 0, data)
            self._vectors[key] = tensors, buffer
        return self._vectors[key][1]

    def stacked(self, *tensors: Tensor) -> DenseWeight:
        """Float matrices one below the other (a router, a gate) as one weight, the same each time."""
        key = tuple(map(id, tensors))
        if key not in self._wrapped:
            self._wrapped[key] = tensors, DenseWeight(torch.cat([tensor.float() for tensor in tensors]), "F32")
        return self._wrapped[key][1]

    def widened(self, weight: Weight) -> Weight:
        """A matrix filled up with columns of zeros, as products of many rows take it, the same each time."""
        columns = weight.in_features
        if columns % 8 == 0:
            return weight
        dense = plain(weight)
        if columns % 4 or not isinstance(dense, DenseWeight):
            raise NoKernel(f"a {weight.format} matrix of {columns} columns, no multiple of 4")
        if id(weight) not in self._widened:
            self._widened[id(weight)] = weight, DenseWeight(F.pad(dense.values, (0, -columns % 8)), dense.format)
        return self._widened[id(weight)][1]

    def _upload(self, layout: Layout) -> Matrix:
        weights = [weight for expert in layout for joined in expert for weight in joined]
        forms = {form_name(weight, packed=self.packed) for weight in weights}
        shapes = {(sum(weight.out_features for weight in joined)) for expert in layout for joined in expert}
        columns = {weight.in_features for weight in weights}
        if len(forms) != 1 or len(shapes) != 1 or len(columns) != 1:
            raise NoKernel(f"one product of matrices in {', '.join(sorted(forms))} with different shapes or forms")
        form, rows, width = forms.pop(), shapes.pop(), columns.pop()
        self.forms.add(form)
        count = len(layout) * len(layout[0])
        most = self._gpu.matrix_bytes // (count * _row_bytes(form, width))
        if not most:
            raise NoKernel(f"a row of {count} matrices of {width} columns, larger than what a kernel is given at once")
        parts = [self._part(layout, form, width, first, min(most, rows - first)) for first in range(0, rows, most)]
        return Matrix(form, rows, width, tuple(parts))

    def _part(self, layout: Layout, form: str, columns: int, first: int, rows: int) -> Part:
        nbytes = len(layout) * len(layout[0]) * rows * _row_bytes(form, columns)

        def pieces() -> Iterator[Piece]:
            for expert in layout:
                for joined in expert:
                    yield from _rows_of(joined, first, first + rows, as_stored=form == "packed")

        if form == "packed":
            return Part(first, rows, *self._packed_part(nbytes, pieces))
        if form == "q8_0":
            body = self._gpu.filled(nbytes, lambda: _placed(_q8(piece)[:, :, 2:] for piece in pieces()))
            scales = self._gpu.filled(nbytes // 16, lambda: _placed(_q8(piece)[:, :, :2] for piece in pieces()))
            return Part(first, rows, body, nbytes, scales)
        dtype = torch.bfloat16 if form == "bf16" else torch.float32
        body = self._gpu.filled(nbytes, lambda: _placed(_values(piece, dtype).view(torch.uint8) for piece in pieces()))
        return Part(first, rows, body, nbytes, None)

    def _packed_part(self, nbytes: int, pieces: Callable[[], Iterator[Piece]]) -> tuple[Buffer, int, Buffer]:
        offset = best_offset(torch.stack([_exponents(piece) for piece in pieces()]).sum(0).tolist())
        coded: list[PackedRows] = []

        def bodies() -> Iterator[Tensor]:
            for piece in pieces():
                made = _packed(piece, offset)
                coded.append(PackedRows(made.body[:0], made.counts, made.escapes))
                yield made.body

        body = self._gpu.filled(nbytes, lambda: _placed(bodies()))
        words = side_words(offset, coded).view(torch.uint8)
        if len(words) > self._gpu.binding_limit:
            raise NoKernel(f"a matrix of which {len(words):,} bytes do not compress")
        return body, nbytes, self._gpu.filled(len(words), lambda: _placed(iter([words])))


def _row_bytes(form: str, columns: int) -> int:
    if form == "packed":
        return packed_row_bytes(columns)
    return columns * {"bf16": 2, "f32": 4, "q8_0": 1}[form]


def _rows_of(joined: Joined, begin: int, end: int, *, as_stored: bool) -> Iterator[Piece]:
    """Rows of matrices one below the other, in pieces; ``as_stored``: packed ones as they are."""
    top = 0
    for weight in joined:
        first, last = max(begin - top, 0), min(end - top, weight.out_features)
        top += weight.out_features
        if first < last:
            weight = weight if as_stored else plain(weight)
            step = max(1, _AT_ONCE // weight.in_features)
            yield from (_slice(weight, row, min(row + step, last)) for row in range(first, last, step))


def _slice(weight: Weight, begin: int, end: int) -> Piece:
    if isinstance(weight, Q8Weight):
        return Q8Weight(weight.blocks[begin:end])
    if isinstance(weight, PackedWeight):
        return StoredRows(weight.stored, begin, end)
    assert isinstance(weight, DenseWeight), f"rows of a {weight.format} weight"
    return DenseWeight(weight.values[begin:end], weight.format)


def _values(piece: Piece, dtype: torch.dtype) -> Tensor:
    assert isinstance(piece, DenseWeight), "values of coded weights"
    return piece.values.to(dtype).contiguous()


def _exponents(piece: Piece) -> Tensor:
    return exponents_of(piece) if isinstance(piece, StoredRows) else exponent_counts(_values(piece, torch.bfloat16))


def _packed(piece: Piece, offset: int) -> PackedRows:
    return repack(piece, offset) if isinstance(piece, StoredRows) else pack_rows(_values(piece, torch.bfloat16), offset)


def _q8(piece: Piece) -> Tensor:
    assert isinstance(piece, Q8Weight), "blocks of weights that have none"
    return piece.blocks.view(len(piece.blocks), piece.in_features // BLOCK, BLOCK_BYTES)


def _placed(pieces: Iterator[Tensor]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Bytes one behind the other, with their offsets."""
    offset = 0
    for piece in pieces:
        data = piece.contiguous().numpy().reshape(-1)
        yield offset, data
        offset += data.nbytes
