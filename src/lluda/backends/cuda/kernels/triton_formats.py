"""Tiles of a matrix in any of the forms that a GPU multiplies with, in Triton: plain numbers, packed BF16, Q8_0.

A kernel asks for a tile's bytes (`fetch`), which it may before its input is there, takes the input's values in the
tile's order of columns (`row`), multiplies (`dot`) and adds what does not lie in the tile (`aside`, `settle`). A matrix
is an address; where its parts lie follows from its shape (`coded_weight`).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lluda.backends.cuda.coded_weight import PACKED, Q8_0, CodedWeight
from lluda.backends.cuda.kernels.triton_target import kernel, launch_options, take_input
from lluda.backends.weight import DenseWeight, Weight

TYPES = {torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}
_FORMS = {PACKED: 1, Q8_0: 2}
_LEAST_COLUMNS = {0: 1, 1: 128, 2: 32}

_HEADER, _BLOCK, _BLOCK_BYTES = tl.constexpr(64), tl.constexpr(128), tl.constexpr(192)
_KEPT, _CODE = tl.constexpr(0x807F0000 - 2**32), tl.constexpr(0x07800000)
_LIFT = tl.constexpr(2.0**64)  # keeps products with a packed tile's small numbers away from the end of float32


@triton.jit
def fetch(base, n, count, start, K: tl.constexpr, BLOCK_K: tl.constexpr, FORM: tl.constexpr, WEIGHT: tl.constexpr):
    """The bytes of rows ``n`` and of columns ``start`` to ``start + BLOCK_K`` of the matrix ``[count, K]`` at ``base``.
    Plain: the tile, twice; packed: signs and mantissas, and codes; Q8_0: numbers, and scales."""
    at = start + tl.arange(0, BLOCK_K)
    rows = n.to(tl.int64)[:, None]
    if FORM == 1:
        BLOCKS: tl.constexpr = (K + _BLOCK - 1) // _BLOCK
        body = tl.multiple_of(base.to(tl.pointer_type(tl.int8)), 64) + _HEADER + rows * (BLOCKS * _BLOCK_BYTES)
        block, byte = at // _BLOCK, at % _BLOCK
        inside = (n < count)[:, None] & (block < BLOCKS)[None, :]
        kept = tl.load(body + (block * _BLOCK_BYTES + byte)[None, :], mask=inside, other=0)
        codes = tl.load(body + (block * _BLOCK_BYTES + _BLOCK + at % 64)[None, :], mask=inside, other=0)
        return kept, codes
    elif FORM == 2:
        group = start // 32 + tl.arange(0, BLOCK_K // 32)
        q_ptr = tl.multiple_of(base.to(tl.pointer_type(tl.int8)), 16)
        d_ptr = tl.multiple_of((base + count * K).to(tl.pointer_type(tl.float16)), 16)
        q = tl.load(q_ptr + rows * K + at[None, :], mask=(n < count)[:, None] & (at < K)[None, :], other=0)
        inside = (n < count)[:, None] & (group < K // 32)[None, :]
        return q, tl.load(d_ptr + rows * (K // 32) + group[None, :], mask=inside, other=0.0)
    else:
        w_ptr = tl.multiple_of(base.to(tl.pointer_type(WEIGHT)), 16)
        w = tl.load(w_ptr + rows * K + at[None, :], mask=(n < count)[:, None] & (at < K)[None, :], other=0.0)
        return w, w


@triton.jit
def _unpacked(kept, codes, BLOCK_K: tl.constexpr):
    """A packed tile's values, float32, but for the factor in the matrix's header and `_LIFT`."""
    shift = 23 - tl.arange(0, BLOCK_K) % 128 // 64 * 4
    kept = (kept.to(tl.int32) << 16) & _KEPT
    return (kept | ((codes.to(tl.int32) << shift[None, :]) & _CODE)).to(tl.float32, bitcast=True)


@triton.jit
def dot(tile, beside, x, ROWS: tl.constexpr, BLOCK_K: tl.constexpr, FORM: tl.constexpr):
    """Sums float32 ``[ROWS]`` of the tile's rows times ``x [BLOCK_K]``, float32 in the tile's order of columns."""
    if FORM == 1:
        return tl.sum(_unpacked(tile, beside, BLOCK_K) * (x * _LIFT)[None, :], 1)
    elif FORM == 2:
        parts = tl.sum(tl.reshape(tile.to(tl.float32) * x[None, :], [ROWS, BLOCK_K // 32, 32]), 2)
        return tl.sum(parts * beside.to(tl.float32), 1)
    else:
        return tl.sum(tile.to(tl.float32) * x[None, :], 1)


@triton.jit
def _escapes(base, n, count, K: tl.constexpr):
    """Where the escapes of rows ``n`` begin and end, and where all of them are."""
    BLOCKS: tl.constexpr = (K + _BLOCK - 1) // _BLOCK
    end = base + _HEADER + count * (BLOCKS * _BLOCK_BYTES)
    offsets = tl.multiple_of(end.to(tl.pointer_type(tl.int32)), 8)
    entries = (end + (count + 2) // 2 * 8).to(tl.pointer_type(tl.int64))
    first = tl.load(offsets + n, mask=n < count, other=0)
    return first, tl.load(offsets + n + 1, mask=n < count, other=0), tl.multiple_of(entries, 8)


@triton.jit
def aside(base, n, count, K: tl.constexpr, FORM: tl.constexpr):
    """What `settle` needs of the matrix: each row's escapes, from where to where, the first of them, and a factor."""
    if FORM == 1:
        first, end, entries = _escapes(base, n, count, K)
        factor = tl.load(base.to(tl.pointer_type(tl.float32)))
        return first, end, tl.load(entries + first, mask=first < end, other=0), factor
    else:
        return n, n, n, 1.0


@triton.jit
def _escaped(entry, there, x_ptr, norm_ptr, scale, NORM: tl.constexpr, COMPUTE: tl.constexpr):
    column = entry >> 32
    x = tl.load(x_ptr + column, mask=there, other=0.0).to(tl.float32)
    if NORM:
        x = x * scale * tl.load(norm_ptr + column, mask=there, other=0.0)
    return x.to(COMPUTE).to(tl.float32) * (entry.to(tl.int32) << 16).to(tl.float32, bitcast=True)


@triton.jit
def settle(sums, first, end, entry, factor, base, n, count, x_ptr, norm_ptr, scale, K: tl.constexpr,
           NORM: tl.constexpr, COMPUTE: tl.constexpr, FORM: tl.constexpr):  # fmt: skip
    """Rows ``n`` of the product with a row ``x_ptr``, whose norm multiplies by ``scale``, from all its tiles' sums."""
    if FORM == 1:
        sums = sums * factor + _escaped(entry, first < end, x_ptr, norm_ptr, scale, NORM, COMPUTE)
        _, _, entries = _escapes(base, n, count, K)
        for e in range(1, tl.max(end - first, 0)):
            there = first + e < end
            entry = tl.load(entries + first + e, mask=there, other=0)
            sums += _escaped(entry, there, x_ptr, norm_ptr, scale, NORM, COMPUTE)
    return sums


@triton.jit
def row(x_ptr, norm_ptr, eps, start, K: tl.constexpr, CHUNKS: tl.constexpr, BLOCK_K: tl.constexpr, NORM: tl.constexpr,
        COMPUTE: tl.constexpr, FORM: tl.constexpr):  # fmt: skip
    """Columns ``start`` on, in a tile's order, of a row, normalised, as the product takes them: float32 values of
    COMPUTE's grid; and what its norm multiplies by."""
    cols = start + tl.arange(0, BLOCK_K)
    x = tl.load(x_ptr + cols, mask=cols < K, other=0.0).to(tl.float32)
    scale = 1.0
    if NORM:
        if CHUNKS == 1:
            total = tl.sum(x * x, 0)
        else:
            total = 0.0
            every = tl.arange(0, BLOCK_K)
            for chunk in tl.static_range(CHUNKS):
                part = tl.load(x_ptr + chunk * BLOCK_K + every, mask=chunk * BLOCK_K + every < K, other=0.0)
                part = part.to(tl.float32)
                total += tl.sum(part * part, 0)
        scale = tl.rsqrt(total / K + eps)
        x = x * scale * tl.load(norm_ptr + cols, mask=cols < K, other=0.0)
    x = x.to(COMPUTE).to(tl.float32)
    if FORM == 1:
        # As the file interleaves a block's bytes: groups of 8 from both quarters of each half in turn.
        x = tl.reshape(tl.permute(tl.reshape(x, [BLOCK_K // 64, 2, 4, 8]), (0, 2, 1, 3)), [BLOCK_K])
    return x, scale


@kernel(kept=True)
def _decode(base, table_ptr, ids_ptr, out_ptr, stride, count, K: tl.constexpr, BLOCK_K: tl.constexpr,
            FORM: tl.constexpr, LOOKUP: tl.constexpr, TABLE: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    r, start, matrix = tl.program_id(0), tl.program_id(1) * BLOCK_K, tl.program_id(2)
    take_input(PDL)
    source = r
    if LOOKUP:
        # An id outside the table is the caller's to report; reading elsewhere would end the process.
        source = tl.minimum(tl.maximum(tl.load(ids_ptr + r * stride), 0), count - 1)
    if TABLE:
        base = tl.load(table_ptr + matrix * 3)
    n = source + tl.arange(0, 1)
    tile, beside = fetch(base, n, count, start, K, BLOCK_K, FORM, tl.float32)
    if FORM == 1:
        values = _unpacked(tile, beside, BLOCK_K) * _LIFT * tl.load(base.to(tl.pointer_type(tl.float32)))
        values = tl.permute(tl.reshape(values, [BLOCK_K // 64, 4, 2, 8]), (0, 2, 1, 3))
    else:
        scales = tl.broadcast_to(beside.to(tl.float32)[:, :, None], [1, BLOCK_K // 32, 32])
        values = tile.to(tl.float32) * tl.reshape(scales, [1, BLOCK_K])
    cols = start + tl.arange(0, BLOCK_K)
    out = out_ptr + (matrix.to(tl.int64) * tl.num_programs(0) + r) * K
    tl.store(out + cols, tl.reshape(values, [BLOCK_K]).to(out_ptr.dtype.element_ty), mask=cols < K)
    if FORM == 1:
        first, end, entries = _escapes(base, n, count, K)
        tl.debug_barrier()
        for e in range(tl.min(first, 0), tl.max(end, 0)):
            entry = tl.load(entries + e)
            column = entry >> 32
            value = (entry.to(tl.int32) << 16).to(tl.float32, bitcast=True).to(out_ptr.dtype.element_ty)
            tl.store(out + column, value, mask=(column >= start) & (column < start + BLOCK_K))


def decoded(weight: CodedWeight, dtype: torch.dtype, ids: Tensor | None = None, *, pdl: bool) -> Tensor:
    """The matrix's rows in ``dtype``, or those of ``ids`` (int64 ``[rows]``, any stride)."""
    rows, width = (weight.out_features if ids is None else len(ids)), weight.in_features
    out = torch.empty(rows, width, dtype=dtype, device=weight.data.device)
    _launch_decode((rows, 1), weight, 0 if ids is None else ids.stride(0), weight.data, ids, out, pdl)
    return out


def decoded_group(like: CodedWeight, table: Tensor, count: int, dtype: torch.dtype, *, pdl: bool) -> Tensor:
    """The ``count`` matrices of ``like``'s form and shape whose addresses are every third number from the start of
    ``table`` on: ``[count, rows, columns]``."""
    out = torch.empty(count, like.out_features, like.in_features, dtype=dtype, device=table.device)
    _launch_decode((like.out_features, count), like, 0, table, None, out, pdl, table=True)
    return out


def _launch_decode(
    grid: tuple[int, int], like: CodedWeight, stride: int, data: Tensor, ids: Tensor | None, out: Tensor, pdl: bool,
    table: bool = False,
) -> None:  # fmt: skip
    form = _FORMS[like.format]
    block = max(_LEAST_COLUMNS[form], min(triton.next_power_of_2(like.in_features), 2048))
    chunks = triton.cdiv(like.in_features, block)
    _decode[(grid[0], chunks, grid[1])](
        like.data.data_ptr(), data, ids if ids is not None else out, out, stride, like.out_features,
        K=like.in_features, BLOCK_K=block, FORM=form, LOOKUP=ids is not None, TABLE=table, **launch_options(pdl, 4),
    )  # fmt: skip


def place_of(weight: Weight) -> int:
    """The matrix's address."""
    return (weight.data if isinstance(weight, CodedWeight) else values_of(weight)).data_ptr()


def values_of(weight: Weight) -> Tensor:
    """A plain matrix's numbers."""
    assert isinstance(weight, DenseWeight), f"a Triton kernel was given a {weight.format} weight as plain numbers"
    return weight.values


def form_of(weight: Weight) -> dict[str, Any]:
    """A kernel's arguments that say what the matrix's bytes mean."""
    if isinstance(weight, CodedWeight):
        return {"FORM": _FORMS[weight.format], "WEIGHT": tl.bfloat16}
    return {"FORM": 0, "WEIGHT": TYPES[values_of(weight).dtype]}


def compute_of(weight: Weight) -> torch.dtype:
    """What rows are rounded to before they are multiplied with the matrix."""
    return torch.bfloat16 if isinstance(weight, CodedWeight) else values_of(weight).dtype


def tile_columns(width: int, weight: Weight, most: int) -> int:
    """Columns of a tile of a matrix of ``width`` columns: a power of two up to ``most``."""
    least = _LEAST_COLUMNS[form_of(weight)["FORM"]]
    return max(least, min(int(triton.next_power_of_2(width)), most))
