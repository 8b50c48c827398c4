"""Attention of one new row over its cache, in Triton: q/k norm, rotation, the cache's new entry and the softmax in one.

A key head's query heads share a program, and a long cache is split among up to ``_SPLITS`` programs, fewer where there
are many rows, of which the last to end adds up (flash decoding, Dao et al. 2023). Where the keys lie and how many there
are is read from device memory, so that one captured launch serves every sequence, however it grows.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lluda.backends.cuda.triton_target import interpreted, launch_options, product, take_input

_SPLITS, _MIN_GROUP = 4 if interpreted() else 32, 16
_PROGRAMS = 2048  # of a launch, where that leaves one for each row and head
_MANY_CELLS = 128  # rows times heads, from which on programs are smaller, so that more of them run at once
_FEW, _MANY = (64, 4, 128), (32, 4, 256)
"""Positions taken at once, warps, and positions for which it pays to ask another program, whose part must be added."""

_EVERYTHING = 1 << 30
_TYPES = {torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}


@triton.jit
def _turned(row_ptr, norm_ptr, eps, cos, sin, heads, count, HALF: tl.constexpr, WIDE: tl.constexpr,
            NORM: tl.constexpr):  # fmt: skip
    """Heads ``[count, 2 * HALF]`` at ``row_ptr``, normalised and rotated: both halves, float32, padded with zeros."""
    d = tl.arange(0, WIDE)
    at = row_ptr + heads[:, None] * (2 * HALF) + d[None, :]
    inside = (heads < count)[:, None] & (d < HALF)[None, :]
    a = tl.load(at, mask=inside, other=0.0)
    b = tl.load(at + HALF, mask=inside, other=0.0)
    if NORM:
        scale = tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / (2 * HALF) + eps)[:, None]
        a = a * scale * tl.load(norm_ptr + d, mask=d < HALF, other=0.0)[None, :]
        b = b * scale * tl.load(norm_ptr + HALF + d, mask=d < HALF, other=0.0)[None, :]
    return a * cos[None, :] - b * sin[None, :], b * cos[None, :] + a * sin[None, :]


@triton.jit
def _block(keys, values, slots, end, HALF: tl.constexpr, WIDE: tl.constexpr):
    """Keys, in halves, and values of ``slots``; zeros from ``end`` on."""
    d, wide = tl.arange(0, WIDE), tl.arange(0, 2 * WIDE)
    valid, at = (slots < end)[:, None], slots[:, None] * (2 * HALF)
    half = valid & (d < HALF)[None, :]
    lower = tl.load(keys + at + d[None, :], mask=half, other=0.0)
    upper = tl.load(keys + at + HALF + d[None, :], mask=half, other=0.0)
    return lower, upper, tl.load(values + at + wide[None, :], mask=valid & (wide < 2 * HALF)[None, :], other=0.0)


@triton.jit
def _weighted(weights, values, CACHE: tl.constexpr):
    """``weights @ values`` as if the weights were not rounded: BF16 takes them in two halves."""
    if tl.float32 == CACHE:
        return product(weights, values, "ieee")
    upper = weights.to(CACHE)
    lower = (weights - upper.to(tl.float32)).to(CACHE)
    return product(upper, values, "ieee") + product(lower, values, "ieee")


@triton.jit
def _decode(qkv_ptr, q_norm_ptr, k_norm_ptr, cos_ptr, sin_ptr, table_ptr, out_ptr, part_ptr, stat_ptr, counter_ptr,
            q_eps, k_eps, layer, window,
            HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, WIDE: tl.constexpr, FRESH: tl.constexpr,
            PADDED: tl.constexpr, BLOCK: tl.constexpr, SPLITS: tl.constexpr, LEAST: tl.constexpr,
            NORM: tl.constexpr, CACHE: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    GROUP: tl.constexpr = HEADS // KV_HEADS
    DIM: tl.constexpr = 2 * HALF
    WIDTH: tl.constexpr = (HEADS + 2 * KV_HEADS) * DIM
    # All but the new rows' keys was there before the step: it is asked for first.
    index = row % FRESH
    entry = table_ptr + (row // FRESH) * 4
    length = tl.load(entry + 2)
    capacity = tl.load(entry + 3)
    count = tl.minimum(length + index + 1, capacity).to(tl.int32)
    low = tl.maximum(count - window, 0)
    per = tl.maximum(tl.cdiv(tl.cdiv(count - low, SPLITS), BLOCK) * BLOCK, LEAST)
    used = tl.cdiv(count - low, per)
    if split < used:
        start = low + split * per
        end = tl.minimum(start + per, count)
        d, wide, g = tl.arange(0, WIDE), tl.arange(0, 2 * WIDE), tl.arange(0, PADDED)
        half, whole = d < HALF, wide < DIM
        place = (layer * KV_HEADS + head) * capacity * DIM
        keys = tl.multiple_of(tl.load(entry).to(tl.pointer_type(CACHE)), 16) + place
        values = tl.multiple_of(tl.load(entry + 1).to(tl.pointer_type(CACHE)), 16) + place
        slots = start + tl.arange(0, BLOCK)
        k1, k2, v = _block(keys, values, slots, end, HALF, WIDE)
        take_input(PDL)
        cos = tl.load(cos_ptr + row * HALF + d, mask=half, other=0.0)
        sin = tl.load(sin_ptr + row * HALF + d, mask=half, other=0.0)
        query_row = qkv_ptr + row * WIDTH + head * GROUP * DIM
        q1, q2 = _turned(query_row, q_norm_ptr, q_eps, cos, sin, g, GROUP, HALF, WIDE, NORM)
        q1, q2 = q1.to(CACHE), q2.to(CACHE)
        highest = tl.full([PADDED], float("-inf"), tl.float32)
        total = tl.zeros([PADDED], tl.float32)
        mixed = tl.zeros([PADDED, 2 * WIDE], tl.float32)
        for at in range(start, end, BLOCK):
            slots = at + tl.arange(0, BLOCK)
            valid = slots < end
            for j in tl.static_range(FRESH):
                slot = ((length + j) % capacity).to(tl.int32)
                if (j <= index) & (slot >= at) & (slot < at + BLOCK):
                    # Rows of this step: their keys are made here rather than waited for; the last is stored.
                    fresh = row - index + j
                    cos_j = tl.load(cos_ptr + fresh * HALF + d, mask=half, other=0.0)
                    sin_j = tl.load(sin_ptr + fresh * HALF + d, mask=half, other=0.0)
                    key_row = qkv_ptr + fresh * WIDTH + (HEADS + head) * DIM
                    one = tl.arange(0, 1)
                    n1, n2 = _turned(key_row, k_norm_ptr, k_eps, cos_j, sin_j, one, 1, HALF, WIDE, NORM)
                    new = tl.load(key_row + KV_HEADS * DIM + wide, mask=whole, other=0.0).to(CACHE)
                    here = (slots == slot)[:, None]
                    k1 = tl.where(here, n1.to(CACHE), k1)
                    k2 = tl.where(here, n2.to(CACHE), k2)
                    v = tl.where(here, new[None, :], v)
                    if j == index:
                        new_key = keys + slot * DIM + one[:, None] * DIM + d[None, :]
                        tl.store(new_key, n1.to(CACHE), mask=half[None, :])
                        tl.store(new_key + HALF, n2.to(CACHE), mask=half[None, :])
                        tl.store(values + slot * DIM + wide, new, mask=whole)
            scores = product(q1, tl.trans(k1), "ieee") + product(q2, tl.trans(k2), "ieee")
            scores = tl.where(valid[None, :], scores / tl.sqrt(DIM * 1.0), float("-inf"))
            peak = tl.maximum(highest, tl.max(scores, 1))
            weights = tl.exp(scores - peak[:, None])
            shrink = tl.exp(highest - peak)
            total = total * shrink + tl.sum(weights, 1)
            mixed = mixed * shrink[:, None] + _weighted(weights, v, CACHE)
            highest = peak
            k1, k2, v = _block(keys, values, slots + BLOCK, end, HALF, WIDE)
        inside = (g < GROUP)[:, None] & whole[None, :]
        out = out_ptr + (row * HEADS + head * GROUP) * DIM + g[:, None] * DIM + wide[None, :]
        if used == 1:
            tl.store(out, (mixed / total[:, None]).to(out_ptr.dtype.element_ty), mask=inside)
        else:
            cell = row * KV_HEADS + head
            part = (cell * SPLITS + split) * PADDED
            tl.store(part_ptr + (part + g)[:, None] * (2 * WIDE) + wide[None, :], mixed)
            tl.store(stat_ptr + (part + g) * 2, highest)
            tl.store(stat_ptr + (part + g) * 2 + 1, total)
            tl.debug_barrier()
            if tl.atomic_add(counter_ptr + cell, 1) == used - 1:
                highest = tl.full([PADDED], float("-inf"), tl.float32)
                total = tl.zeros([PADDED], tl.float32)
                mixed = tl.zeros([PADDED, 2 * WIDE], tl.float32)
                for other in range(0, used):
                    part = (cell * SPLITS + other) * PADDED
                    its_peak = tl.load(stat_ptr + (part + g) * 2, cache_modifier=".cg")
                    its_total = tl.load(stat_ptr + (part + g) * 2 + 1, cache_modifier=".cg")
                    its = tl.load(part_ptr + (part + g)[:, None] * (2 * WIDE) + wide[None, :], cache_modifier=".cg")
                    peak = tl.maximum(highest, its_peak)
                    shrink, grow = tl.exp(highest - peak), tl.exp(its_peak - peak)
                    total = total * shrink + its_total * grow
                    mixed = mixed * shrink[:, None] + its * grow[:, None]
                    highest = peak
                tl.store(out, (mixed / total[:, None]).to(out_ptr.dtype.element_ty), mask=inside)
                tl.store(counter_ptr + cell, 0)
    else:
        take_input(PDL)


class DecodeScratch:
    """What split attention of up to ``rows`` rows adds up in; zeroed counters. Of one stream of one backend: launches
    that run side by side need one each."""

    def __init__(self, rows: int, kv_heads: int, group: int, head_dim: int, device: torch.device) -> None:
        cells, padded = rows * kv_heads, max(_MIN_GROUP, triton.next_power_of_2(group))
        parts = max(_PROGRAMS, cells)
        self.parts = torch.empty(parts * padded * 2 * _wide(head_dim), dtype=torch.float32, device=device)
        self.stats = torch.empty(parts * padded * 2, dtype=torch.float32, device=device)
        self.counters = torch.zeros(cells, dtype=torch.int32, device=device)


def _splits(cells: int) -> int:
    """Programs that a cache of one row and head is split among at most: a power of two."""
    return max(1, min(_SPLITS, 1 << (max(1, _PROGRAMS // cells).bit_length() - 1)))


def _wide(head_dim: int) -> int:
    """Half a head as the kernel takes it: what the matrix units' products need at least."""
    return max(16, 1 << (head_dim // 2 - 1).bit_length())


@triton.jit
def _store(key_ptr, value_ptr, table_ptr, layer, KV_HEADS: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr,
           CACHE: tl.constexpr):  # fmt: skip
    row, head = tl.program_id(0), tl.program_id(1)
    capacity = tl.load(table_ptr + 3)
    d = tl.arange(0, PADDED)
    place = ((layer * KV_HEADS + head) * capacity + tl.load(table_ptr + 2) + row) * DIM + d
    source = (row.to(tl.int64) * KV_HEADS + head) * DIM + d
    for part in tl.static_range(2):
        rows = tl.load((value_ptr if part else key_ptr) + source, mask=d < DIM, other=0.0)
        at = tl.load(table_ptr + part).to(tl.pointer_type(CACHE)) + place
        tl.store(at, rows.to(CACHE), mask=d < DIM)


def store_rows(keys: Tensor, values: Tensor, stores: Tensor, layer: int, cache: torch.dtype) -> None:
    """Put contiguous ``keys`` and ``values [rows, kv_heads, head_dim]`` behind what the one store of ``stores`` holds,
    as layer ``layer``; it has room for them."""
    rows, kv_heads, head_dim = keys.shape
    _store[(rows, kv_heads)](
        keys, values, stores, layer, KV_HEADS=kv_heads, DIM=head_dim, PADDED=triton.next_power_of_2(head_dim),
        CACHE=_TYPES[cache], num_warps=1,
    )  # fmt: skip


def decode_attention(
    qkv: Tensor,
    norms: tuple[tuple[Tensor, float], tuple[Tensor, float]] | None,
    table: tuple[Tensor, Tensor],
    stores: Tensor,
    scratch: DecodeScratch,
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    layer: int,
    fresh: int,
    window: int | None,
    compute: torch.dtype,
    cache: torch.dtype,
    pdl: bool,
) -> Tensor:
    """Attended rows ``[rows, heads * head_dim]`` in ``compute`` of ``qkv [rows, (heads + 2 * kv_heads) * head_dim]``
    float32, whose keys and values are stored as layer ``layer``.

    Args:
        norms: weight and epsilon of the query and the key norm.
        table: cosines and sines ``[rows, head_dim / 2]``, float32.
        stores: int64 ``[rows / fresh, STORE_WIDTH]`` (`lluda.backends.capture`); the buffers behind it hold ``cache``.
        fresh: rows of each store in this step, one below the other.
    """
    rows, group = len(qkv), heads // kv_heads
    out = torch.empty(rows, heads * head_dim, dtype=compute, device=qkv.device)
    (q_norm, q_eps), (k_norm, k_eps) = norms or ((qkv, 0.0), (qkv, 0.0))
    splits = _splits(rows * kv_heads)
    block, warps, least = _FEW if rows * kv_heads < _MANY_CELLS else _MANY
    _decode[(rows, kv_heads, splits)](
        qkv, q_norm, k_norm, *table, stores, out, scratch.parts, scratch.stats, scratch.counters, q_eps, k_eps, layer,
        window or _EVERYTHING, HEADS=heads, KV_HEADS=kv_heads, HALF=head_dim // 2, WIDE=_wide(head_dim), FRESH=fresh,
        PADDED=max(_MIN_GROUP, triton.next_power_of_2(group)), BLOCK=block, SPLITS=splits, LEAST=least,
        NORM=norms is not None, CACHE=_TYPES[cache], **launch_options(pdl, warps),
    )  # fmt: skip
    return out
