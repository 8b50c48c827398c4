"""Attention of one new row over its cache, in Triton: q/k norm, rotation, the cache's new entry and the softmax in one.

A key head's query heads share a program, and a long cache is split among up to ``_SPLITS`` programs, fewer where there
are many rows, of which the last to end adds up (flash decoding, Dao et al. 2023). Where the keys lie and how many there
are is read from device memory, so that one captured launch serves every sequence, however it grows.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lluda.backends.cuda.kernels.triton_target import interpreted, kernel, launch_options, product, take_input

_SPLITS, _MIN_GROUP = 4 if interpreted() else 32, 16
_PROGRAMS = 2048  # of a launch, where that leaves one for each row and head
_MANY_CELLS = 128  # rows times heads, from which on programs are smaller, so that more of them run at once
_SHORT, _FEW, _MANY = (16, 4, 2, 128), (64, 4, 2, 128), (32, 4, 2, 256)
"""Positions taken at once, warps, such steps under way, and positions of a program at least where there are several."""

_ALONE = 64 if interpreted() else 256
"""Positions up to which one program takes all: to add up what several have found takes as long as two blocks more."""

_ADDED = 64  # heads of parts that are added up at once

EVERYTHING = 1 << 30
TYPES = {torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}


@triton.jit
def turned(at, inside, norm_ptr, eps, cos, sin, HALF: tl.constexpr, WIDE: tl.constexpr, NORM: tl.constexpr):
    """Heads ``[count, 2 * HALF]``, of which ``at`` points to the first halves ``[count, WIDE]`` where ``inside``,
    normalised and rotated: both halves, float32, padded with zeros."""
    d = tl.arange(0, WIDE)
    a = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(at + HALF, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        scale = tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / (2 * HALF) + eps)[:, None]
        a = a * scale * tl.load(norm_ptr + d, mask=d < HALF, other=0.0)[None, :]
        b = b * scale * tl.load(norm_ptr + HALF + d, mask=d < HALF, other=0.0)[None, :]
    return a * cos - b * sin, b * cos + a * sin


@triton.jit
def _block(keys, values, slots, valid, HALF: tl.constexpr, WIDE: tl.constexpr):
    """Keys, in halves, and values of ``slots``; zeros where they are not ``valid``."""
    d, wide = tl.arange(0, WIDE), tl.arange(0, 2 * WIDE)
    at = slots[:, None] * (2 * HALF)
    half = valid[:, None] & (d < HALF)[None, :]
    lower = tl.load(keys + at + d[None, :], mask=half, other=0.0)
    upper = tl.load(keys + at + HALF + d[None, :], mask=half, other=0.0)
    whole = valid[:, None] & (wide < 2 * HALF)[None, :]
    return lower, upper, tl.load(values + at + wide[None, :], mask=whole, other=0.0)


@triton.jit
def _is_old(behind, index, capacity):
    """Whether slots so many ``behind`` that of the step's first row hold an earlier step's position, where rows up to
    ``index`` of this step take slots; a ring begins again at its end."""
    return tl.where(behind < 0, behind + capacity.to(tl.int32), behind) > index


@triton.jit
def _weighted(weights, values, CACHE: tl.constexpr):
    """``weights @ values`` as if the weights were not rounded: BF16 takes them in two halves."""
    if tl.float32 == CACHE:
        return product(weights, values, "ieee")
    upper = weights.to(CACHE)
    lower = (weights - upper.to(tl.float32)).to(CACHE)
    return product(upper, values, "ieee") + product(lower, values, "ieee")


@triton.jit
def _seen(q1, q2, k1, k2, v, valid, highest, total, mixed, DIM: tl.constexpr, CACHE: tl.constexpr):
    """The softmax so far (largest score, sum of the weights, weighted values) with one more block of positions."""
    scores = product(q1, tl.trans(k1), "ieee") + product(q2, tl.trans(k2), "ieee")
    scores = tl.where(valid[None, :], scores / tl.sqrt(DIM * 1.0), float("-inf"))
    peak = tl.maximum(highest, tl.max(scores, 1))
    base = tl.where(peak == float("-inf"), 0.0, peak)  # nothing was visible yet
    weights = tl.exp(scores - base[:, None])
    shrink = tl.exp(highest - base)
    total = total * shrink + tl.sum(weights, 1)
    return peak, total, mixed * shrink[:, None] + _weighted(weights, v, CACHE)


@triton.jit
def _parts(part_ptr, stat_ptr, parts, which, used, whole, PADDED: tl.constexpr, GROUP: tl.constexpr,
           MEMBERS: tl.constexpr, WIDE: tl.constexpr):  # fmt: skip
    """Of the programs ``which``, the weighted values of each head and its largest score."""
    g, wide = tl.arange(0, MEMBERS), tl.arange(0, WIDE)
    place = (parts + which)[:, None] * PADDED + g[None, :]
    inside = (which < used)[:, None] & (g < GROUP)[None, :]
    at = part_ptr + place[:, :, None] * WIDE + wide[None, None, :]
    its = tl.load(at, mask=inside[:, :, None] & whole[None, None, :], other=0.0, cache_modifier=".cg")
    return its, tl.load(stat_ptr + place * 2, mask=inside, other=float("-inf"), cache_modifier=".cg")


@triton.jit
def _added_up(part_ptr, stat_ptr, parts, used, out, whole, SPLITS: tl.constexpr, PADDED: tl.constexpr,
              GROUP: tl.constexpr, MEMBERS: tl.constexpr, TOGETHER: tl.constexpr, WIDE: tl.constexpr,
              DIM: tl.constexpr):  # fmt: skip
    """What the ``used`` programs of one row and key head have found from ``parts`` on, as attended rows at ``out``."""
    s, t, g = tl.arange(0, SPLITS), tl.arange(0, TOGETHER), tl.arange(0, MEMBERS)
    its, peak = _parts(part_ptr, stat_ptr, parts, t, used, whole, PADDED, GROUP, MEMBERS, WIDE)
    there = (s < used)[:, None] & (g < GROUP)[None, :]
    stat = stat_ptr + ((parts + s)[:, None] * PADDED + g[None, :]) * 2
    peaks = tl.load(stat, mask=there, other=float("-inf"), cache_modifier=".cg")
    totals = tl.load(stat + 1, mask=there, other=0.0, cache_modifier=".cg")
    highest = tl.max(peaks, 0)
    highest = tl.where(highest == float("-inf"), 0.0, highest)  # where there is no head
    total = tl.sum(totals * tl.exp(peaks - highest[None, :]), 0)
    mixed = tl.zeros([TOGETHER, MEMBERS, WIDE], tl.float32)
    for first in range(TOGETHER, used + TOGETHER, TOGETHER):
        mixed += its * tl.exp(peak - highest[None, :])[:, :, None]
        its, peak = _parts(part_ptr, stat_ptr, parts, first + t, used, whole, PADDED, GROUP, MEMBERS, WIDE)
    rows = tl.sum(mixed, 0) / tl.where(g < GROUP, total, 1.0)[:, None]
    inside = (g < GROUP)[:, None] & whole[None, :]
    tl.store(out[None, :] + g[:, None] * DIM, rows.to(out.dtype.element_ty), mask=inside)


@kernel(do_not_specialize=["layer", "splits", "least", "alone"])
def _decode(qkv_ptr, q_norm_ptr, k_norm_ptr, cos_ptr, sin_ptr, table_ptr, out_ptr, part_ptr, stat_ptr, counter_ptr,
            q_eps, k_eps, layer, window, splits, least, alone,
            HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, WIDE: tl.constexpr, FRESH: tl.constexpr,
            PADDED: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr, SPLITS: tl.constexpr,
            MEMBERS: tl.constexpr, TOGETHER: tl.constexpr, NORM: tl.constexpr, CACHE: tl.constexpr,
            PDL: tl.constexpr):  # fmt: skip
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
    per = tl.maximum(tl.cdiv(tl.cdiv(count - low, splits), BLOCK) * BLOCK, least)
    per = tl.where(count - low <= alone, alone, per)
    used = tl.cdiv(count - low, per)
    if split < used:
        start = low + split * per
        end = tl.minimum(start + per, count)
        d, wide, g = tl.arange(0, WIDE), tl.arange(0, 2 * WIDE), tl.arange(0, PADDED)
        half, whole = d < HALF, wide < DIM
        place = (layer * KV_HEADS + head) * capacity * DIM
        keys = tl.multiple_of(tl.load(entry).to(tl.pointer_type(CACHE)), 16) + place
        values = tl.multiple_of(tl.load(entry + 1).to(tl.pointer_type(CACHE)), 16) + place
        new = (length % capacity).to(tl.int32)  # the slot of this step's first row
        # Where there is one new row, the block with its slot comes first; else the last, and the new rows at the end.
        last = start + (end - 1 - start) // BLOCK * BLOCK
        first = last
        if FRESH == 1:
            if (new >= start) & (new < end):
                first = start + (new - start) // BLOCK * BLOCK
        slots = first + tl.arange(0, BLOCK)
        valid = (slots < end) & _is_old(slots - new, index, capacity)
        k1, k2, v = _block(keys, values, slots, valid, HALF, WIDE)
        take_input(PDL)
        cos = tl.load(cos_ptr + row * HALF + d, mask=half, other=0.0)[None, :]
        sin = tl.load(sin_ptr + row * HALF + d, mask=half, other=0.0)[None, :]
        query = qkv_ptr + row * WIDTH + (head * GROUP + g)[:, None] * DIM + d[None, :]
        q1, q2 = turned(query, (g < GROUP)[:, None] & half[None, :], q_norm_ptr, q_eps, cos, sin, HALF, WIDE, NORM)
        q1, q2 = q1.to(CACHE), q2.to(CACHE)
        if FRESH == 1:
            if (new >= start) & (new < end):
                # Its key is made here rather than waited for.
                one = tl.arange(0, 1)[:, None]
                key = qkv_ptr + row * WIDTH + (HEADS + head) * DIM + one
                n1, n2 = turned(key + d[None, :], half[None, :], k_norm_ptr, k_eps, cos, sin, HALF, WIDE, NORM)
                n1, n2 = n1.to(CACHE), n2.to(CACHE)
                row_of_v = key + KV_HEADS * DIM + wide[None, :]
                new_v = tl.load(row_of_v, mask=whole[None, :], other=0.0).to(CACHE)
                tl.store(keys + new * DIM + one + d[None, :], n1, mask=half[None, :])
                tl.store(keys + new * DIM + one + HALF + d[None, :], n2, mask=half[None, :])
                tl.store(values + new * DIM + one + wide[None, :], new_v, mask=whole[None, :])
                here = (slots == new)[:, None]
                k1, k2, v = tl.where(here, n1, k1), tl.where(here, n2, k2), tl.where(here, new_v, v)
                valid = valid | (slots == new)
        highest = tl.full([PADDED], float("-inf"), tl.float32)
        total = tl.zeros([PADDED], tl.float32)
        mixed = tl.zeros([PADDED, 2 * WIDE], tl.float32)
        highest, total, mixed = _seen(q1, q2, k1, k2, v, valid, highest, total, mixed, DIM, CACHE)
        for at in tl.range(start, tl.where(first == last, last, end), BLOCK, num_stages=STAGES):
            slots = at + tl.arange(0, BLOCK)
            valid = (slots < end) & _is_old(slots - new, index, capacity) & (at != first)
            k1, k2, v = _block(keys, values, slots, valid, HALF, WIDE)
            highest, total, mixed = _seen(q1, q2, k1, k2, v, valid, highest, total, mixed, DIM, CACHE)
        if FRESH > 1:
            if split == used - 1:
                j = tl.arange(0, 16)
                fresh = row - index + j
                there = (j <= index)[:, None] & half[None, :]
                angle = fresh[:, None] * HALF + d[None, :]
                new_cos = tl.load(cos_ptr + angle, mask=there, other=0.0)
                new_sin = tl.load(sin_ptr + angle, mask=there, other=0.0)
                keys_of = qkv_ptr + fresh[:, None] * WIDTH + (HEADS + head) * DIM
                f1, f2 = turned(keys_of + d[None, :], there, k_norm_ptr, k_eps, new_cos, new_sin, HALF, WIDE, NORM)
                f1, f2 = f1.to(CACHE), f2.to(CACHE)
                rows_of_v = keys_of + KV_HEADS * DIM + wide[None, :]
                fresh_v = tl.load(rows_of_v, mask=(j <= index)[:, None] & whole[None, :], other=0.0).to(CACHE)
                visible = (j <= index) & (index - j < window)
                highest, total, mixed = _seen(q1, q2, f1, f2, fresh_v, visible, highest, total, mixed, DIM, CACHE)
                slot = ((length + index) % capacity) * DIM + (j * 0)[:, None]
                its = (j == index)[:, None]
                tl.store(keys + slot + d[None, :], f1, mask=its & half[None, :])
                tl.store(keys + slot + HALF + d[None, :], f2, mask=its & half[None, :])
                tl.store(values + slot + wide[None, :], fresh_v, mask=its & whole[None, :])
        inside = (g < GROUP)[:, None] & whole[None, :]
        out = out_ptr + (row * HEADS + head * GROUP) * DIM + wide
        if used == 1:
            rows = (mixed / total[:, None]).to(out_ptr.dtype.element_ty)
            tl.store(out[None, :] + g[:, None] * DIM, rows, mask=inside)
        else:
            cell = row * KV_HEADS + head
            part = (cell * splits + split) * PADDED
            tl.store(part_ptr + (part + g)[:, None] * (2 * WIDE) + wide[None, :], mixed, mask=inside)
            tl.store(stat_ptr + (part + g) * 2, highest)
            tl.store(stat_ptr + (part + g) * 2 + 1, total)
            tl.debug_barrier()
            if tl.atomic_add(counter_ptr + cell, 1) == used - 1:
                _added_up(part_ptr, stat_ptr, cell * splits, used, out, whole, SPLITS, PADDED, GROUP, MEMBERS,
                          TOGETHER, 2 * WIDE, DIM)  # fmt: skip
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
    most: int | None,
    pdl: bool,
) -> Tensor:
    """Attended rows ``[rows, heads * head_dim]`` in ``compute`` of ``qkv [rows, (heads + 2 * kv_heads) * head_dim]``
    float32, whose keys and values are stored as layer ``layer``.

    Args:
        norms: weight and epsilon of the query and the key norm.
        table: cosines and sines ``[rows, head_dim / 2]``, float32.
        stores: int64 ``[rows / fresh, STORE_WIDTH]`` (`lluda.backends.capture`); the buffers behind it hold ``cache``.
        fresh: rows of each store in this step, one below the other.
        most: positions that a store holds at most, if that is known.
    """
    rows, group = len(qkv), heads // kv_heads
    members = triton.next_power_of_2(group)
    out = torch.empty(rows, heads * head_dim, dtype=compute, device=qkv.device)
    (q_norm, q_eps), (k_norm, k_eps) = norms or ((qkv, 0.0), (qkv, 0.0))
    splits = _splits(rows * kv_heads)
    block, warps, stages, least = _FEW if rows * kv_heads < _MANY_CELLS else _MANY
    if most is not None and most <= _SHORT[0]:
        splits, (block, warps, stages, least) = 1, _SHORT
    _decode[(rows, kv_heads, splits)](
        qkv, q_norm, k_norm, *table, stores, out, scratch.parts, scratch.stats, scratch.counters, q_eps, k_eps, layer,
        window or EVERYTHING, splits, least, _ALONE, HEADS=heads, KV_HEADS=kv_heads, HALF=head_dim // 2,
        WIDE=_wide(head_dim), FRESH=fresh, PADDED=max(_MIN_GROUP, members), BLOCK=block, STAGES=stages, SPLITS=_SPLITS,
        MEMBERS=members, TOGETHER=max(1, min(_SPLITS, _ADDED // members)), NORM=norms is not None, CACHE=TYPES[cache],
        **launch_options(pdl, warps),
    )  # fmt: skip
    return out
