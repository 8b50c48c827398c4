"""The next tokens of a batch chosen on the device, in Triton, each row by its own settings in device memory: what
`engine/sampling/sampler.py` does, in its order and precision.

A vocabulary is looked at in parts and chunks of parts. The k-th largest of the parts' maxima is at most the k-th
largest score, so that only chunks with a maximum as large can hold what top-k keeps: a few thousand scores, which one
program narrows down to those that are as large, and chooses among. Where these are more than it takes (many scores tie)
it chooses nothing, and the host does, from the logits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lluda.backends.capture import SAMPLING_NUMBERS, SAMPLING_WIDTH
from lluda.backends.cuda.kernels.triton_target import kernel, launch_options, take_input

_PARTS, _LEAST_PART, _CHUNK = 256, 16, 64
_SELECTED, _CANDIDATES = 128, 256
_NUMBERS, _WIDTH, _BLOCK = tl.constexpr(SAMPLING_NUMBERS), tl.constexpr(SAMPLING_WIDTH), tl.constexpr(32)


@kernel()
def _score(logits_ptr, ids_ptr, numbers_ptr, sampling_ptr, score_ptr, chunk_ptr, part_ptr, count,
           CHUNKS: tl.constexpr, CHUNK: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """Scores of one part of one row (written where they are not the logits), its maximum (NaN or infinity where a logit
    is) and those of its chunks."""
    r, part, parts = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    numbers, addresses = numbers_ptr + r * _WIDTH, sampling_ptr + r * _WIDTH + _NUMBERS
    take_input(PDL)
    chunk = tl.arange(0, CHUNKS)
    i = part * (CHUNKS * CHUNK) + chunk[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :]
    inside = i < count
    at = r.to(tl.int64) * count + i
    raw = tl.load(logits_ptr + at, mask=inside, other=float("-inf"))
    score = tl.where(raw != raw, float("-inf"), raw)
    occurrences = tl.load(addresses)
    addends = tl.load(addresses + 1)
    if occurrences != 0:
        place = occurrences.to(tl.pointer_type(tl.int32)) + i
        is_fed = i == tl.load(ids_ptr + r)
        fed = tl.load(addresses + 2).to(tl.int32)
        code = tl.where(is_fed, fed, tl.load(place, mask=inside, other=0))
        tl.store(place, code, mask=inside & is_fed)
        repetition = tl.load(numbers + 4).to(tl.float32)
        presence = tl.load(numbers + 5).to(tl.float32)
        frequency = tl.load(numbers + 6).to(tl.float32)
        times = (code >> 1).to(tl.float32)
        lower = tl.where(score < 0, score * repetition, tl.div_rn(score, repetition))
        lower = lower - frequency * times - tl.where(times > 0, presence, 0.0)
        score = tl.where(code > 0, lower, score)
    if addends != 0:
        score += tl.load(addends.to(tl.pointer_type(tl.float32)) + i, mask=inside, other=0.0)
    tl.store(score_ptr + at, score, mask=inside & ((occurrences != 0) | (addends != 0)))
    maxima = tl.max(score, 1)
    tl.store(chunk_ptr + (r * parts + part) * CHUNKS + chunk, maxima)
    is_nan = tl.sum(tl.sum((raw != raw).to(tl.int32), 1), 0) > 0
    is_infinite = tl.sum(tl.sum((raw == float("inf")).to(tl.int32), 1), 0) > 0
    peak = tl.where(is_infinite, float("inf"), tl.max(maxima, 0))
    tl.store(part_ptr + r * parts + part, tl.where(is_nan, float("nan"), peak))


@triton.jit
def _larger(mine, others_ptr, count, WIDTH: tl.constexpr):
    """How many of the ``count`` numbers at ``others_ptr`` are larger than each of ``mine [WIDTH]``."""
    larger = tl.zeros([WIDTH], tl.int32)
    for start in range(0, count, _BLOCK):
        o = start + tl.arange(0, _BLOCK)
        other = tl.load(others_ptr + o, mask=o < count, other=float("-inf"))
        larger += tl.sum((other[None, :] > mine[:, None]).to(tl.int32), 1)
    return larger


@triton.jit
def weight_before(mine, scores_ptr, weights_ptr, count, WIDTH: tl.constexpr):
    """The sum of the weights of those that come before each of ``mine`` where the largest comes first, of equals the
    first."""
    g = tl.arange(0, WIDTH)
    before = tl.zeros([WIDTH], tl.float64)
    for start in range(0, count, _BLOCK):
        o = start + tl.arange(0, _BLOCK)
        other = tl.load(scores_ptr + o, mask=o < count, other=float("-inf"))
        weight = tl.load(weights_ptr + o, mask=o < count, other=0.0)
        ahead = (other[None, :] > mine[:, None]) | ((other[None, :] == mine[:, None]) & (o[None, :] < g[:, None]))
        before += tl.sum(tl.where(ahead, weight[None, :], 0.0), 1)
    return before


@kernel()
def _choose(logits_ptr, score_ptr, numbers_ptr, sampling_ptr, chunk_ptr, part_ptr, list_ptr, id_ptr, kept_ptr,
            weight_ptr, out_ptr, count,
            PARTS: tl.constexpr, PADDED_PARTS: tl.constexpr, CHUNKS: tl.constexpr, PADDED_CHUNKS: tl.constexpr,
            CHUNK: tl.constexpr, SELECTED: tl.constexpr, CANDIDATES: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    r = tl.program_id(0)
    take_input(PDL)
    numbers, addresses = numbers_ptr + r * _WIDTH, sampling_ptr + r * _WIDTH + _NUMBERS
    temperature, top_k, top_p = tl.load(numbers), tl.load(numbers + 1).to(tl.int32), tl.load(numbers + 2)
    min_p, uniform = tl.load(numbers + 3), tl.load(numbers + 7)
    # The least that top-k may keep, from the parts.
    p = tl.arange(0, PADDED_PARTS)
    part = tl.load(part_ptr + r * PARTS + p, mask=p < PARTS, other=float("-inf"))
    is_nan = tl.sum((part != part).to(tl.int32), 0) > 0
    part = tl.where(part != part, float("-inf"), part)
    peak = tl.max(part, 0)
    larger = _larger(part, part_ptr + r * PARTS, PARTS, PADDED_PARTS)
    bound = tl.min(tl.where(larger < top_k, part, float("inf")), 0)
    bound = tl.where(top_k > PARTS, float("-inf"), bound)
    # The chunks that reach it, in their order.
    c = tl.arange(0, PADDED_CHUNKS)
    maxima = tl.load(chunk_ptr + r * CHUNKS + c, mask=c < CHUNKS, other=float("-inf"))
    reaches = (maxima >= bound) & (c < CHUNKS)
    place = tl.cumsum(reaches.to(tl.int32), 0) - 1
    selected = tl.sum(reaches.to(tl.int32), 0)
    tl.store(list_ptr + r * SELECTED + place, c, mask=reaches & (place < SELECTED))
    tl.debug_barrier()
    # Their scores that reach it, in the order of their ids.
    s = tl.arange(0, SELECTED)
    chunk = tl.load(list_ptr + r * SELECTED + s, mask=s < selected, other=0)
    i = chunk[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :]
    inside = (s < selected)[:, None] & (i < count)
    changed = (tl.load(addresses) != 0) | (tl.load(addresses + 1) != 0)
    at = r.to(tl.int64) * count + i
    score = tl.load(score_ptr + at, mask=inside & changed, other=float("-inf"))
    score = tl.where(changed, score, tl.load(logits_ptr + at, mask=inside & (changed == 0), other=float("-inf")))
    reaches = inside & (score >= bound)
    flat = tl.reshape(reaches.to(tl.int32), [SELECTED * CHUNK])
    place = tl.reshape(tl.cumsum(flat, 0) - 1, [SELECTED, CHUNK])
    found = tl.sum(flat, 0)
    taken = reaches & (place < CANDIDATES)
    tl.store(id_ptr + r * CANDIDATES + place, i, mask=taken)
    tl.store(kept_ptr + r * CANDIDATES + place, score, mask=taken)
    tl.debug_barrier()
    # Among these: top-k, top-p, min-p, and the draw.
    g = tl.arange(0, CANDIDATES)
    mine = tl.load(kept_ptr + r * CANDIDATES + g, mask=g < found, other=float("-inf"))
    ids = tl.load(id_ptr + r * CANDIDATES + g, mask=g < found, other=0)
    number = tl.minimum(found, CANDIDATES)
    kept = (g < number) & (_larger(mine, kept_ptr + r * CANDIDATES, number, CANDIDATES) < top_k)
    highest = tl.max(mine, 0)
    weight = tl.where(kept, tl.exp((mine.to(tl.float64) - highest.to(tl.float64)) / temperature), 0.0)
    needed = top_p * tl.sum(weight, 0)
    tl.store(weight_ptr + r * CANDIDATES + g, weight)
    tl.debug_barrier()
    if top_p < 1.0:
        before = weight_before(mine, kept_ptr + r * CANDIDATES, weight_ptr + r * CANDIDATES, number, CANDIDATES)
        weight = tl.where(before < needed, weight, 0.0)
    weight = tl.where(weight >= min_p, weight, 0.0)
    reached = tl.cumsum(weight, 0)
    total = tl.max(reached, 0)
    index = tl.sum((reached <= uniform * total).to(tl.int32), 0)
    index = tl.minimum(index, tl.sum((reached < total).to(tl.int32), 0))
    token = tl.sum(tl.where(g == index, ids, 0), 0)
    token = tl.where((selected > SELECTED) | (found > CANDIDATES), -1, token)
    tl.store(out_ptr + r * 2, token.to(tl.float64))
    tl.store(out_ptr + r * 2 + 1, tl.where(is_nan, float("nan"), peak).to(tl.float64))


def choose(logits: Tensor, ids: Tensor, sampling: Tensor, *, pdl: bool) -> Tensor:
    """Of each row of float32 ``logits [rows, count]`` the token chosen and the largest score (NaN or infinity where a
    logit is): float64 ``[rows, 2]``. A token of -1: the host must choose.

    ``ids`` (int64 ``[rows]``): the tokens of this step, which occurred once more than the tables of occurrences say.
    ``sampling`` (int64 ``[rows, SAMPLING_WIDTH]``) holds the bytes of the rows' `capture.RowSampling`.
    """
    assert sampling.is_contiguous(), "a row's settings lie side by side"
    numbers = sampling.view(torch.float64)
    rows, count = logits.shape
    device = logits.device
    width = max(_LEAST_PART, triton.next_power_of_2(triton.cdiv(count, _PARTS)))
    chunk = min(_CHUNK, width)
    parts, per = triton.cdiv(count, width), width // chunk
    scores = torch.empty(rows, count, dtype=torch.float32, device=device)
    chunk_maxima = torch.empty(rows, parts * per, dtype=torch.float32, device=device)
    part_maxima = torch.empty(rows, parts, dtype=torch.float32, device=device)
    _score[(rows, parts)](
        logits, ids, numbers, sampling, scores, chunk_maxima, part_maxima, count, CHUNKS=per, CHUNK=chunk,
        enable_fp_fusion=False, **launch_options(pdl, 4),
    )  # fmt: skip
    selected = torch.empty(rows, _SELECTED, dtype=torch.int32, device=device)
    found = torch.empty(rows, _CANDIDATES, dtype=torch.int32, device=device)
    kept = torch.empty(rows, _CANDIDATES, dtype=torch.float32, device=device)
    weights = torch.empty(rows, _CANDIDATES, dtype=torch.float64, device=device)
    out = torch.empty(rows, 2, dtype=torch.float64, device=device)
    _choose[(rows,)](
        logits, scores, numbers, sampling, chunk_maxima, part_maxima, selected, found, kept, weights, out, count,
        PARTS=parts, PADDED_PARTS=triton.next_power_of_2(parts), CHUNKS=parts * per,
        PADDED_CHUNKS=triton.next_power_of_2(parts * per), CHUNK=chunk, SELECTED=_SELECTED, CANDIDATES=_CANDIDATES,
        **launch_options(pdl, 8),
    )  # fmt: skip
    return out
