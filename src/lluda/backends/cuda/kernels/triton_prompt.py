"""Attention of a prompt's rows, in Triton: they are put behind what a cache holds, then each looks at all before it.

The rows of a tile are those of some positions times the query heads that share a key head, so that few rows fill a tile
too. Where few tiles leave a GPU idle, the cache is split among programs, of which the last to end adds up (Dao et al.
2023). Where the cache lies, how much it holds and how many rows are real is read from device memory, so that one
captured launch serves every sequence and every start; what fills up a launch is not stored.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from lluda.backends.cuda.kernels.triton_attention import EVERYTHING, TYPES, turned
from lluda.backends.cuda.kernels.triton_target import interpreted, kernel, launch_options, product, take_input

COUNTERS = 512
"""Zeros that split launches count in."""

_PROGRAMS = 132  # one for each processor of a large GPU
_LEAST = 32 if interpreted() else 256  # positions for which it pays to ask another program
_TOGETHER = 16  # heads that a program turns
_LOG2E = tl.constexpr(1.4426950408889634)


@dataclass(frozen=True, slots=True)
class Tile:
    """What one program takes: ``rows`` (times heads), ``positions`` at a time, with so many steps under way."""

    rows: int
    positions: int
    warps: int
    stages: int


@kernel(do_not_specialize=["layer"])
def _enter(q_ptr, k_ptr, v_ptr, q_norm_ptr, k_norm_ptr, cos_ptr, sin_ptr, table_ptr, out_ptr, q_stride, k_stride,
           v_stride, q_eps, k_eps, layer, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr,
           WIDE: tl.constexpr, TOGETHER: tl.constexpr, NORM: tl.constexpr, CACHE: tl.constexpr,
           PDL: tl.constexpr):  # fmt: skip
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    QUERIES: tl.constexpr = (HEADS + TOGETHER - 1) // TOGETHER
    DIM: tl.constexpr = 2 * HALF
    d, wide, h = tl.arange(0, WIDE), tl.arange(0, 2 * WIDE), tl.arange(0, TOGETHER)
    take_input(PDL)
    cos = tl.load(cos_ptr + row * HALF + d, mask=d < HALF, other=0.0)[None, :]
    sin = tl.load(sin_ptr + row * HALF + d, mask=d < HALF, other=0.0)[None, :]
    if block < QUERIES:
        head = block * TOGETHER + h
        inside = (head < HEADS)[:, None] & (d < HALF)[None, :]
        at = head[:, None] * DIM + d[None, :]
        a, b = turned(q_ptr + row * q_stride + at, inside, q_norm_ptr, q_eps, cos, sin, HALF, WIDE, NORM)
        out = out_ptr + row * (HEADS * DIM) + at
        tl.store(out, a.to(out_ptr.dtype.element_ty), mask=inside)
        tl.store(out + HALF, b.to(out_ptr.dtype.element_ty), mask=inside)
    elif row < tl.load(table_ptr + 4):
        head = (block - QUERIES) * TOGETHER + h
        capacity = tl.load(table_ptr + 3)
        place = ((layer * KV_HEADS + head) * capacity + tl.load(table_ptr + 2) + row)[:, None] * DIM
        inside = (head < KV_HEADS)[:, None] & (d < HALF)[None, :]
        at = head[:, None] * DIM + d[None, :]
        a, b = turned(k_ptr + row * k_stride + at, inside, k_norm_ptr, k_eps, cos, sin, HALF, WIDE, NORM)
        keys = tl.load(table_ptr).to(tl.pointer_type(CACHE)) + place + d[None, :]
        tl.store(keys, a.to(CACHE), mask=inside)
        tl.store(keys + HALF, b.to(CACHE), mask=inside)
        whole = (head < KV_HEADS)[:, None] & (wide < DIM)[None, :]
        value = tl.load(v_ptr + row * v_stride + head[:, None] * DIM + wide[None, :], mask=whole, other=0.0)
        values = tl.load(table_ptr + 1).to(tl.pointer_type(CACHE)) + place + wide[None, :]
        tl.store(values, value.to(CACHE), mask=whole)


@triton.jit
def _seen(q, keys, values, slots, end, position, window, highest, total, mixed, scale, DIM: tl.constexpr,
          WIDE: tl.constexpr, MASKED: tl.constexpr, CACHE: tl.constexpr):  # fmt: skip
    """The softmax so far, in powers of two, with the positions ``slots``; all see all of them unless MASKED."""
    wide = tl.arange(0, WIDE)
    at = slots[:, None] * DIM + wide[None, :]
    inside = (wide < DIM)[None, :] & (slots < end)[:, None]
    if not MASKED and DIM == WIDE:
        k, v = tl.load(keys + at), tl.load(values + at)
    else:
        k, v = tl.load(keys + at, mask=inside, other=0.0), tl.load(values + at, mask=inside, other=0.0)
    scores = product(q, tl.trans(k), "ieee") * scale
    if MASKED:
        behind = position[:, None] - slots[None, :]
        scores = tl.where((behind >= 0) & (behind < window) & (slots < end)[None, :], scores, float("-inf"))
    peak = tl.maximum(highest, tl.max(scores, 1))
    base = tl.where(peak == float("-inf"), 0.0, peak) if MASKED else peak
    weights = tl.exp2(scores - base[:, None])
    shrink = tl.exp2(highest - base)
    total = total * shrink + tl.sum(weights, 1)
    mixed = mixed * shrink[:, None] + product(weights.to(CACHE), v, "ieee")
    return peak, total, mixed


@kernel(do_not_specialize=["layer", "rows", "splits"])
def _attend(q_ptr, table_ptr, out_ptr, part_ptr, stat_ptr, counter_ptr, layer, window, rows, splits,
            HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr, BLOCK_M: tl.constexpr,
            BLOCK_N: tl.constexpr, STAGES: tl.constexpr, SPLIT: tl.constexpr, LEAST: tl.constexpr,
            WINDOWED: tl.constexpr, CACHE: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # the last rows see most: they begin first
    head, split = tl.program_id(1), tl.program_id(2)
    GROUP: tl.constexpr = HEADS // KV_HEADS
    m, wide = tile * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, WIDE)
    whole = wide < DIM
    take_input(PDL)
    length, capacity = tl.load(table_ptr + 2).to(tl.int32), tl.load(table_ptr + 3)
    fresh = tl.load(table_ptr + 4).to(tl.int32)
    # Rows that fill up are where the last real one is.
    position = length + tl.minimum(m // GROUP, fresh - 1)
    first = length + tl.minimum(tile * BLOCK_M // GROUP, fresh - 1)
    end = length + tl.minimum((tile * BLOCK_M + BLOCK_M - 1) // GROUP + 1, fresh)
    low = tl.maximum(first - window + 1, 0) // BLOCK_N * BLOCK_N
    per = tl.maximum(tl.cdiv(tl.cdiv(end - low, splits), BLOCK_N) * BLOCK_N, LEAST)
    used = tl.cdiv(end - low, per)
    if tile * BLOCK_M // GROUP >= fresh:
        used = 1
    if split < used:
        start = low + split * per
        stop = tl.minimum(start + per, end)
        open_end = tl.minimum((first + 1) // BLOCK_N * BLOCK_N, stop)  # up to where all rows see all
        if WINDOWED:
            open_end = start
        if tile * BLOCK_M // GROUP >= fresh:
            stop = start
            open_end = start
        open_end = tl.maximum(open_end, start)
        place = (layer * KV_HEADS + head) * capacity * DIM
        keys = tl.multiple_of(tl.load(table_ptr).to(tl.pointer_type(CACHE)), 16) + place
        values = tl.multiple_of(tl.load(table_ptr + 1).to(tl.pointer_type(CACHE)), 16) + place
        at = (m // GROUP).to(tl.int64) * (HEADS * DIM) + (head * GROUP + m % GROUP) * DIM
        inside = (m // GROUP < fresh)[:, None] & whole[None, :]
        q = tl.load(q_ptr + at[:, None] + wide[None, :], mask=inside, other=0.0).to(CACHE)
        scale = _LOG2E / tl.sqrt(DIM * 1.0)
        highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        mixed = tl.zeros([BLOCK_M, WIDE], tl.float32)
        for n in tl.range(start, open_end, BLOCK_N, num_stages=STAGES):
            slots = n + tl.arange(0, BLOCK_N)
            highest, total, mixed = _seen(q, keys, values, slots, stop, position, window, highest, total, mixed, scale,
                                          DIM, WIDE, False, CACHE)  # fmt: skip
        for n in tl.range(open_end, stop, BLOCK_N, num_stages=STAGES):
            slots = n + tl.arange(0, BLOCK_N)
            highest, total, mixed = _seen(q, keys, values, slots, stop, position, window, highest, total, mixed, scale,
                                          DIM, WIDE, True, CACHE)  # fmt: skip
        out = out_ptr + at[:, None] + wide[None, :]
        last = used == 1
        if SPLIT:
            cell = tile * KV_HEADS + head
            if used > 1:
                part = (cell * splits + split) * BLOCK_M + tl.arange(0, BLOCK_M)
                tl.store(part_ptr + part[:, None] * WIDE + wide[None, :], mixed)
                tl.store(stat_ptr + part * 2, highest)
                tl.store(stat_ptr + part * 2 + 1, total)
                tl.debug_barrier()
                last = tl.atomic_add(counter_ptr + cell, 1) == used - 1
                if last:
                    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
                    total = tl.zeros([BLOCK_M], tl.float32)
                    mixed = tl.zeros([BLOCK_M, WIDE], tl.float32)
                    for other in range(0, used):
                        part = (cell * splits + other) * BLOCK_M + tl.arange(0, BLOCK_M)
                        its_peak = tl.load(stat_ptr + part * 2, cache_modifier=".cg")
                        its_total = tl.load(stat_ptr + part * 2 + 1, cache_modifier=".cg")
                        its = tl.load(part_ptr + part[:, None] * WIDE + wide[None, :], cache_modifier=".cg")
                        peak = tl.maximum(highest, its_peak)
                        base = tl.where(peak == float("-inf"), 0.0, peak)
                        shrink, grow = tl.exp2(highest - base), tl.exp2(its_peak - base)
                        total = total * shrink + its_total * grow
                        mixed = mixed * shrink[:, None] + its * grow[:, None]
                        highest = peak
                    tl.store(counter_ptr + cell, 0)
        if last:
            mixed = mixed / tl.where(total > 0, total, 1.0)[:, None]  # a tile of nothing but what fills up
            tl.store(out, mixed.to(out_ptr.dtype.element_ty), mask=whole[None, :] & (m < rows * GROUP)[:, None])


def enter(
    qkv: Sequence[Tensor],
    norms: tuple[tuple[Tensor, float], tuple[Tensor, float]] | None,
    table: tuple[Tensor, Tensor],
    store: Tensor,
    *,
    head_dim: int,
    layer: int,
    compute: torch.dtype,
    cache: torch.dtype,
    pdl: bool,
) -> Tensor:
    """Put a prompt's keys and values behind what its store holds, as layer ``layer``; returns its queries ``[rows,
    heads, head_dim]`` in ``compute``.

    Args:
        qkv: queries ``[rows, heads * head_dim]``, keys and values ``[rows, kv_heads * head_dim]``; columns lie side by
            side, rows anywhere.
        norms: weight and epsilon of the query and the key norm.
        table: cosines and sines ``[rows, head_dim / 2]``, float32.
        store: int64 ``[1, STORE_WIDTH + 1]`` (`lluda.backends.capture`) with, last, how many of the rows are real.
    """
    query = qkv[0]
    rows, heads, kv_heads = len(query), query.shape[1] // head_dim, qkv[1].shape[1] // head_dim
    assert all(part.stride(1) == 1 for part in qkv), "columns lie side by side"
    out = torch.empty(rows, heads, head_dim, dtype=compute, device=query.device)
    (q_norm, q_eps), (k_norm, k_eps) = norms or ((query, 0.0), (query, 0.0))
    together = min(_TOGETHER, triton.next_power_of_2(kv_heads))
    _enter[(rows, triton.cdiv(heads, together) + triton.cdiv(kv_heads, together))](
        *qkv, q_norm, k_norm, *table, store, out, *(part.stride(0) for part in qkv), q_eps, k_eps, layer, HEADS=heads,
        KV_HEADS=kv_heads, HALF=head_dim // 2, WIDE=triton.next_power_of_2(head_dim // 2), TOGETHER=together,
        NORM=norms is not None, CACHE=TYPES[cache], **launch_options(pdl, 4),
    )  # fmt: skip
    return out


def attend(
    query: Tensor,
    store: Tensor,
    counters: Tensor,
    *,
    kv_heads: int,
    layer: int,
    window: int | None,
    cache: torch.dtype,
    pdl: bool,
    tile: Tile | None = None,
    splits: int | None = None,
) -> Tensor:
    """Attended rows ``[rows, heads * head_dim]`` in the dtype of ``query [rows, heads, head_dim]``, whose keys and
    values were put in the ``store`` by `enter`. ``counters``: int32 ``[COUNTERS]``, zeros."""
    rows, heads, head_dim = query.shape
    group = heads // kv_heads
    tile = tile or choose_tile(rows * group)
    tiles, wide = triton.cdiv(rows * group, tile.rows), max(16, triton.next_power_of_2(head_dim))
    splits = splits or _splits(tiles * kv_heads)
    out = torch.empty(rows, heads * head_dim, dtype=query.dtype, device=query.device)
    parts = stats = counters
    if splits > 1:
        assert tiles * kv_heads <= len(counters), f"{tiles} split tiles"
        count = tiles * kv_heads * splits * tile.rows
        parts = torch.empty(count, wide, dtype=torch.float32, device=query.device)
        stats = torch.empty(count, 2, dtype=torch.float32, device=query.device)
    _attend[(tiles, kv_heads, splits)](
        query, store, out, parts, stats, counters, layer, window or EVERYTHING, rows, splits, HEADS=heads,
        KV_HEADS=kv_heads, DIM=head_dim, WIDE=wide, BLOCK_M=tile.rows, BLOCK_N=tile.positions, STAGES=tile.stages,
        SPLIT=splits > 1, LEAST=_LEAST, WINDOWED=window is not None, CACHE=TYPES[cache],
        **launch_options(pdl, tile.warps),
    )  # fmt: skip
    return out


def choose_tile(rows: int) -> Tile:
    """For so many rows times heads that share a key head: the fastest of those tried on an H100 (journal/11-gpu.md)."""
    if interpreted():
        return Tile(32, 32, 4, 1)
    if rows <= 64:
        return Tile(16 if rows <= 16 else 32, 64, 4, 3)
    return Tile(64, 64, 4, 3) if rows <= 4096 else Tile(128, 64, 8, 3)


def _splits(cells: int) -> int:
    """Programs that the positions of one tile and key head are split among at most: a power of two."""
    limit = 4 if interpreted() else 32
    return max(1, min(limit, 1 << (max(1, _PROGRAMS // cells).bit_length() - 1)))
