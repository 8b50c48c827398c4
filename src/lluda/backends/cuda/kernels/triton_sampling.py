"""The next token chosen on the device, in Triton: what `engine/sampling/sampler.py` does, in its order and precision.

Thresholds of top-k and top-p are found by dividing the range of the scores' bit patterns, which have the scores' order;
nothing is sorted. A row's vocabulary must fit one program (`MAX_VOCABULARY`); an argmax takes any.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lluda.backends.capture import CodeRows, SaidCodes
from lluda.backends.cuda.kernels.triton_formats import values_of
from lluda.backends.cuda.kernels.triton_row_sampling import weight_before
from lluda.backends.cuda.kernels.triton_target import interpreted, kernel, launch_options, take_input

MAX_VOCABULARY = 8192
_FEW = 128
"""Scores that are put side by side to be drawn of: of random ones about 65 may be the released top-k of 50."""
_GROUP, _MOST_GROUPS = 4 if interpreted() else 16, 256
"""Scores of which a group's largest is taken, and such groups at most."""
_WARP_SCORES, _WARPS = 128, (4, 16)
"""Scores of a warp, and such warps at least and at most: with more of them each has less to do one after the other."""
_PARTS = 4 if interpreted() else 128


@kernel()
def _part_maximum(logits_ptr, value_ptr, index_ptr, count, PARTS: tl.constexpr, BLOCK: tl.constexpr,
                  PDL: tl.constexpr):  # fmt: skip
    r, part = tl.program_id(0), tl.program_id(1)
    take_input(PDL)
    best, place = float("-inf"), 0x7FFFFFFF
    bad = 0
    for start in range(part * BLOCK, count, PARTS * BLOCK):
        i = start + tl.arange(0, BLOCK)
        value = tl.load(logits_ptr + r.to(tl.int64) * count + i, mask=i < count, other=float("-inf")).to(tl.float32)
        bad += tl.sum((value != value).to(tl.int32), 0)
        peak = tl.max(value, 0)
        first = tl.min(tl.where(value == peak, i, 0x7FFFFFFF), 0)
        place = tl.where(peak > best, first, tl.where(peak == best, tl.minimum(place, first), place))
        best = tl.maximum(best, peak)
    tl.store(value_ptr + r * PARTS + part, tl.where(bad > 0, float("nan"), best))
    tl.store(index_ptr + r * PARTS + part, place)


@kernel()
def _whole_maximum(value_ptr, index_ptr, out_ptr, PARTS: tl.constexpr, PDL: tl.constexpr):
    r = tl.program_id(0)
    take_input(PDL)
    part = tl.arange(0, PARTS)
    value = tl.load(value_ptr + r * PARTS + part)
    index = tl.load(index_ptr + r * PARTS + part)
    bad = tl.sum((value != value).to(tl.int32), 0) > 0
    peak = tl.max(value, 0)
    token = tl.min(tl.where(value == peak, index, 0x7FFFFFFF), 0)
    # Where nothing can be chosen the number is still one of the vocabulary: what reads it next must not fault.
    tl.store(out_ptr + r * 2, tl.where(bad | (token == 0x7FFFFFFF), 0, token).to(tl.float64))
    tl.store(out_ptr + r * 2 + 1, tl.where(bad, float("nan"), peak).to(tl.float64))


@triton.jit
def _least_kept(score, top_k, GROUPS: tl.constexpr, BLOCK: tl.constexpr):
    """A score that at least ``top_k`` of ``score [BLOCK]`` reach, and few more where they are in no order: the
    ``top_k``-th largest of the maxima of ``GROUPS`` groups."""
    largest = tl.max(tl.reshape(score, [GROUPS, BLOCK // GROUPS], can_reorder=True), 1)
    larger = tl.sum((largest[None, :] > largest[:, None]).to(tl.int32), 1)
    return tl.min(tl.where(larger < top_k, largest, float("inf")), 0)


@triton.jit
def _top_k_bound(key, top_k, BLOCK: tl.constexpr):
    """The bits of a score that ``top_k`` of ``key [BLOCK]`` reach, more only where they tie. Four thresholds divide the
    range at a time; those that reach them are counted in one sum, of 16 bits for each."""
    low, high = tl.min(key, 0).to(tl.int64), tl.max(key, 0).to(tl.int64) + 1
    reached = tl.full([], BLOCK, tl.int64)
    while (high - low > 1) & (reached != top_k):
        step = (high - low + 4) // 5
        second, third = tl.minimum(low + 2 * step, high), tl.minimum(low + 3 * step, high)
        fourth = tl.minimum(low + 4 * step, high)
        bits = (key >= (low + step).to(tl.int32)).to(tl.int64)
        bits += (key >= second.to(tl.int32)).to(tl.int64) << 16
        bits += (key >= third.to(tl.int32)).to(tl.int64) << 32
        bits += (key >= fourth.to(tl.int32)).to(tl.int64) << 48
        counts = tl.sum(bits, 0)
        enough = tl.zeros([], tl.int64)
        for place in tl.static_range(4):
            those = (counts >> (16 * place)) & 0xFFFF
            reached = tl.where(those >= top_k, those, reached)
            enough += (those >= top_k).to(tl.int64)
        high = tl.minimum(low + (enough + 1) * step, high)
        low = low + enough * step
    return low.to(tl.int32)


@triton.jit
def _nucleus(key, weight, needed):
    """``weight [BLOCK]`` where less than ``needed`` goes before it, the largest first, else 0: the smallest threshold
    above which less lies; those above it are kept, of those at it as many, by id, as are needed."""
    low, high = tl.min(key, 0).to(tl.int64) - 1, tl.max(key, 0).to(tl.int64)
    while high - low > 1:
        step = (high - low + 3) >> 2
        first, second, third = low + step, low + 2 * step, low + 3 * step
        more = (tl.sum(tl.where(key > first, weight, 0.0), 0) >= needed).to(tl.int64)
        more += (tl.sum(tl.where(key > second, weight, 0.0), 0) >= needed).to(tl.int64)
        more += (tl.sum(tl.where(key > third, weight, 0.0), 0) >= needed).to(tl.int64)
        low += more * step
        high = tl.minimum(low + step, high)
    border = high.to(tl.int32)
    above = tl.sum(tl.where(key > border, weight, 0.0), 0)
    at = tl.where(key == border, weight, 0.0)
    before = tl.cumsum(at, 0) - at
    return tl.where((key > border) | ((key == border) & (above + before < needed)), weight, 0.0)


@triton.jit
def _draw(weight, uniform):
    """The place of ``weight [BLOCK]`` that a number of [0, 1) falls on."""
    reached = tl.cumsum(weight, 0)
    total = tl.max(reached, 0)
    place = tl.sum((reached <= uniform * total).to(tl.int32), 0)
    return tl.minimum(place, tl.sum((reached < total).to(tl.int32), 0))


@triton.jit
def _draw_of_few(score, kept, i, peak, uniform, kept_ptr, id_ptr, weight_ptr, temperature, top_k, top_p, min_p,
                 FEW: tl.constexpr):  # fmt: skip
    """The id drawn of the ``kept`` ones, at most ``FEW``, of which fewer than ``top_k`` (0: any number) are larger: put
    side by side, each is compared with each."""
    place = tl.cumsum(kept.to(tl.int32), 0) - 1
    tl.store(kept_ptr + place, score, mask=kept)
    tl.store(id_ptr + place, i, mask=kept)
    found = tl.sum(kept.to(tl.int32), 0)
    tl.debug_barrier()
    g = tl.arange(0, FEW)
    mine = tl.load(kept_ptr + g, mask=g < found, other=float("-inf"))
    weight = tl.exp((mine.to(tl.float64) - peak.to(tl.float64)) / temperature)
    larger = tl.sum((mine[None, :] > mine[:, None]).to(tl.int32), 1)
    weight = tl.where((g < found) & ((larger < top_k) | (top_k == 0)), weight, 0.0)
    if top_p < 1.0:
        tl.store(weight_ptr + g, weight)
        tl.debug_barrier()
        needed = top_p * tl.sum(weight, 0)
        weight = tl.where(weight_before(mine, kept_ptr, weight_ptr, found, FEW) < needed, weight, 0.0)
    weight = tl.where(weight >= min_p, weight, 0.0)
    drawn = _draw(weight, uniform)
    return tl.sum(tl.where(g == drawn, tl.load(id_ptr + g, mask=g < found, other=0), 0), 0)


@kernel()
def _sample(logits_ptr, suppressed_ptr, seen_ptr, slots_ptr, uniform_ptr, out_ptr, peak_ptr, table_ptr, row_ptr,
            total_ptr, kept_ptr, id_ptr, weight_ptr, temperature, top_k, top_p, min_p, repetition, row_stride,
            COUNT: tl.constexpr, FEW: tl.constexpr, GROUPS: tl.constexpr, BLOCK: tl.constexpr, GREEDY: tl.constexpr,
            SUPPRESS: tl.constexpr, SEEN: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr, BEGIN: tl.constexpr,
            PDL: tl.constexpr):  # fmt: skip
    r = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    take_input(PDL)
    score = tl.load(logits_ptr + r * COUNT + i, mask=i < COUNT, other=float("-inf")).to(tl.float32)
    bad = tl.sum((score != score).to(tl.int32), 0) > 0
    score = tl.where(score != score, float("-inf"), score)
    if SEEN:
        seen_ptr += tl.load(slots_ptr + r) * COUNT
        seen = tl.load(seen_ptr + i, mask=i < COUNT, other=0) != 0
        score = tl.where(seen, tl.where(score < 0, score * repetition, score / repetition), score)
    if SUPPRESS:
        score = tl.where(tl.load(suppressed_ptr + i, mask=i < COUNT, other=0) != 0, float("-inf"), score)
    peak = tl.max(score, 0)
    if GREEDY:
        token = tl.min(tl.where(score == peak, i, BLOCK), 0)
    else:
        bits = score.to(tl.int32, bitcast=True)
        key = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
        kept = i < COUNT
        if (top_k > 0) & (top_k <= GROUPS):
            kept = kept & (score >= _least_kept(score, top_k, GROUPS, BLOCK))
        uniform = tl.load(uniform_ptr + r)
        if tl.sum(kept.to(tl.int32), 0) <= FEW:
            token = _draw_of_few(score, kept, i, peak, uniform, kept_ptr + r * FEW, id_ptr + r * FEW,
                                 weight_ptr + r * FEW, temperature, top_k, top_p, min_p, FEW)  # fmt: skip
        else:
            if top_k > 0:
                kept = kept & (key >= _top_k_bound(key, top_k, BLOCK))
            weight = tl.where(kept, tl.exp((score.to(tl.float64) - peak.to(tl.float64)) / temperature), 0.0)
            if top_p < 1.0:
                weight = _nucleus(key, weight, top_p * tl.sum(weight, 0))
            weight = tl.where(weight >= min_p, weight, 0.0)
            token = _draw(weight, uniform)
    token = tl.where(token < COUNT, token, 0)
    tl.store(out_ptr + r, token.to(tl.int64))
    tl.store(peak_ptr + r, tl.where(bad, float("nan"), peak))
    if SEEN:
        tl.store(seen_ptr + token, 1)
    if WIDTH:
        column = tl.arange(0, WIDE)
        inside = column < WIDTH
        row = tl.load(table_ptr + token.to(tl.int64) * WIDTH + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(row_ptr + r * row_stride + column, row, mask=inside)
        if not BEGIN:
            row += tl.load(total_ptr + r * WIDTH + column, mask=inside, other=0.0)
        tl.store(total_ptr + r * WIDTH + column, row, mask=inside)


def argmax(logits: Tensor, *, pdl: bool) -> Tensor:
    """Of each row of ``logits [rows, count]`` the first id of the largest, and the largest (NaN if any is): float64
    ``[rows, 2]``."""
    rows, count = logits.shape
    values = torch.empty(rows, _PARTS, dtype=torch.float32, device=logits.device)
    places = torch.empty(rows, _PARTS, dtype=torch.int32, device=logits.device)
    out = torch.empty(rows, 2, dtype=torch.float64, device=logits.device)
    options = launch_options(pdl, 4)
    _part_maximum[(rows, _PARTS)](logits, values, places, count, PARTS=_PARTS, BLOCK=1024, **options)
    _whole_maximum[(rows,)](values, places, out, PARTS=_PARTS, **options)
    return out


def sample(
    logits: Tensor,
    uniform: Tensor,
    out: Tensor,
    peak: Tensor,
    *,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repetition: float,
    suppressed: Tensor | None,
    seen: SaidCodes | None,
    embedded: CodeRows | None,
    pdl: bool,
) -> None:
    """Choose from each row of ``logits [rows, count]`` by its number of ``uniform`` (float64 ``[rows]``, in [0, 1))
    into ``out`` (int64 ``[rows]``), the largest score into ``peak`` (float32 ``[rows]``).

    ``suppressed`` is uint8 ``[count]``; the chosen ids are marked as ``seen``, and their rows go where ``embedded``
    says, whose table is plain. Temperature 0 is greedy; ``repetition`` counts where ``seen`` is given. The rest as in
    `engine.sampler.Sampler`.
    """
    rows, count = logits.shape
    assert count <= MAX_VOCABULARY, f"{count} logits for one program"
    marks, slots = seen or (out, out)
    device = logits.device
    kept = torch.empty(rows, _FEW, dtype=torch.float32, device=device)
    ids = torch.empty(rows, _FEW, dtype=torch.int32, device=device)
    weights = torch.empty(rows, _FEW, dtype=torch.float64, device=device)
    block = triton.next_power_of_2(count)
    table, row, total, begins, width = logits, logits, logits, True, 0
    if embedded is not None:
        table, row, total, begins = values_of(embedded.table), *embedded[1:]
        width = table.shape[1]
    _sample[(rows,)](
        logits.contiguous(), suppressed if suppressed is not None else out, marks, slots, uniform, out, peak, table,
        row, total, kept, ids, weights, temperature, top_k, top_p, min_p, repetition, row.stride(0), COUNT=count,
        FEW=_FEW, GROUPS=max(1, min(block // _GROUP, _MOST_GROUPS)), BLOCK=block, GREEDY=temperature == 0.0,
        SUPPRESS=suppressed is not None, SEEN=seen is not None, WIDTH=width,
        WIDE=triton.next_power_of_2(max(width, 1)), BEGIN=begins,
        **launch_options(pdl, min(max(block // _WARP_SCORES, _WARPS[0]), _WARPS[1])),
    )  # fmt: skip
