"""A mixture of experts for many rows, in Triton: rows sorted by expert, one launch for all experts' products.

A tile is up to ``BLOCK_M`` rows of one expert. Which tiles there are is worked out on the device, so that nothing waits
for the host; as many programs are started as there could be, and those without a tile end at once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lluda.backends.triton_target import interpreted, product

_PLANNED = 64  # tiles that one program works out
_TYPES = {torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}


@triton.jit
def _gate_up(x_ptr, order_ptr, expert_ptr, first_ptr, end_ptr, table_ptr, out_ptr,
             TOP_K: tl.constexpr, N: tl.constexpr, K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
             BLOCK_K: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    tile = tl.program_id(1)
    first, end = tl.load(first_ptr + tile), tl.load(end_ptr + tile)
    if first < end:
        expert = tl.load(expert_ptr + tile)
        gate_ptr = tl.multiple_of(tl.load(table_ptr + expert * 3).to(tl.pointer_type(COMPUTE)), 16)
        up_ptr = tl.multiple_of(tl.load(table_ptr + expert * 3 + 1).to(tl.pointer_type(COMPUTE)), 16)
        m = first + tl.arange(0, BLOCK_M)
        n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
        k = tl.arange(0, BLOCK_K)
        source = tl.load(order_ptr + m, mask=m < end, other=0) // TOP_K
        gate = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        up = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for start in range(0, K, BLOCK_K):
            cols = start + k
            x = tl.load(x_ptr + source[:, None] * K + cols[None, :], mask=(m < end)[:, None] & (cols < K)[None, :],
                        other=0.0)  # fmt: skip
            at = n[None, :] * K + cols[:, None]
            inside = (n < N)[None, :] & (cols < K)[:, None]
            gate += product(x, tl.load(gate_ptr + at, mask=inside, other=0.0), PRECISION)
            up += product(x, tl.load(up_ptr + at, mask=inside, other=0.0), PRECISION)
        out = (gate / (1.0 + tl.exp(-gate)) * up).to(COMPUTE)
        tl.store(out_ptr + m.to(tl.int64)[:, None] * N + n[None, :], out, mask=(m < end)[:, None] & (n < N)[None, :])


@triton.jit
def _down(a_ptr, order_ptr, weight_ptr, expert_ptr, first_ptr, end_ptr, table_ptr, out_ptr,
          N: tl.constexpr, K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
          COMPUTE: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    tile = tl.program_id(1)
    first, end = tl.load(first_ptr + tile), tl.load(end_ptr + tile)
    if first < end:
        expert = tl.load(expert_ptr + tile)
        down_ptr = tl.multiple_of(tl.load(table_ptr + expert * 3 + 2).to(tl.pointer_type(COMPUTE)), 16)
        m = first + tl.arange(0, BLOCK_M)
        n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
        k = tl.arange(0, BLOCK_K)
        sums = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for start in range(0, K, BLOCK_K):
            cols = start + k
            a = tl.load(a_ptr + m.to(tl.int64)[:, None] * K + cols[None, :],
                        mask=(m < end)[:, None] & (cols < K)[None, :], other=0.0)  # fmt: skip
            w = tl.load(down_ptr + n[None, :] * K + cols[:, None], mask=(n < N)[None, :] & (cols < K)[:, None],
                        other=0.0)  # fmt: skip
            sums += product(a, w, PRECISION)
        place = tl.load(order_ptr + m, mask=m < end, other=0)
        weight = tl.load(weight_ptr + place, mask=m < end, other=0.0)
        tl.store(out_ptr + place[:, None] * N + n[None, :], sums * weight[:, None],
                 mask=(m < end)[:, None] & (n < N)[None, :])  # fmt: skip


@triton.jit
def _plan(ids_ptr, expert_ptr, first_ptr, end_ptr, count, tiles,
          EXPERTS: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, TILES: tl.constexpr,
          BLOCK: tl.constexpr):  # fmt: skip
    e = tl.arange(0, 2 * PADDED)
    counts = tl.zeros([2 * PADDED], tl.int32)
    for start in range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK)
        # What is past the end is counted behind the experts.
        counts += tl.histogram(tl.load(ids_ptr + i, mask=i < count, other=PADDED).to(tl.int32), 2 * PADDED)
    counts = tl.where(e < EXPERTS, counts, 0)
    per = (counts + ROWS - 1) // ROWS
    ends, tile_ends = tl.cumsum(counts, 0), tl.cumsum(per, 0)
    tile = tl.program_id(0) * TILES + tl.arange(0, TILES)
    expert = tl.sum((tile_ends[None, :] <= tile[:, None]).to(tl.int32), 1)
    mine = expert[:, None] == e[None, :]
    before = tl.sum(tl.where(mine, tile_ends - per, 0), 1)
    end = tl.sum(tl.where(mine, ends, 0), 1)
    first = end - tl.sum(tl.where(mine, counts, 0), 1) + (tile - before) * ROWS
    tl.store(expert_ptr + tile, expert.to(tl.int64), mask=tile < tiles)
    tl.store(first_ptr + tile, first.to(tl.int64), mask=tile < tiles)
    tl.store(end_ptr + tile, tl.where(expert < EXPERTS, end, 0).to(tl.int64), mask=tile < tiles)


@triton.jit
def _route(logits_ptr, weight_ptr, id_ptr, EXPERTS: tl.constexpr, PADDED: tl.constexpr, TOP_K: tl.constexpr,
           NORMALISE: tl.constexpr):  # fmt: skip
    r = tl.program_id(0)
    e = tl.arange(0, PADDED)
    logit = tl.load(logits_ptr + r * EXPERTS + e, mask=e < EXPERTS, other=float("-inf"))
    above = logit[None, :] > logit[:, None]
    level = (logit[None, :] == logit[:, None]) & (e[None, :] < e[:, None])
    rank = tl.sum((above | level).to(tl.int32), 1)
    chance = tl.exp(logit - tl.max(logit, 0))
    total = tl.sum(tl.where(rank < TOP_K, chance, 0.0), 0) if NORMALISE else tl.sum(chance, 0)
    chosen = (rank < TOP_K) & (e < EXPERTS)
    tl.store(weight_ptr + r * TOP_K + rank, chance / total, mask=chosen)
    tl.store(id_ptr + r * TOP_K + rank, e.to(tl.int64), mask=chosen)


def route(logits: Tensor, top_k: int, *, normalise: bool) -> tuple[Tensor, Tensor]:
    """Of each row of float32 ``logits [rows, experts]`` the ``top_k`` largest: their softmax over all experts, or over
    these if ``normalise``, and their ids (int64), both ``[rows, top_k]``."""
    rows, experts = logits.shape
    weights = torch.empty(rows, top_k, dtype=torch.float32, device=logits.device)
    # Ids of a row of NaN are never written; 0 is one that there is.
    ids = torch.zeros(rows, top_k, dtype=torch.int64, device=logits.device)
    _route[(rows,)](
        logits, weights, ids, EXPERTS=experts, PADDED=triton.next_power_of_2(experts), TOP_K=top_k, NORMALISE=normalise
    )
    return weights, ids


def grouped_mixture(x: Tensor, weights: Tensor, ids: Tensor, table: Tensor, *, experts: int, width: int) -> Tensor:
    """Sum of the chosen experts of rows ``x [rows, hidden]`` (the compute dtype): float32 ``[rows, hidden]``.

    ``weights`` (float32) and ``ids`` (int64) are ``[rows, top_k]``; ``table`` as in `triton_mixture.mixture`.
    """
    rows, hidden = x.shape
    top_k, compute = ids.shape[1], x.dtype
    block_m = _tile_rows(rows * top_k / experts)
    order, tiles = _tiles(ids.flatten(), experts, block_m)
    sizes = {
        "BLOCK_M": block_m, "BLOCK_N": 64 if block_m > 64 else 128, "BLOCK_K": 64, "COMPUTE": _TYPES[compute],
        "PRECISION": "ieee" if compute == torch.float32 else "tf32",
        "num_warps": 8 if block_m > 32 else 4, "num_stages": 3,
    }  # fmt: skip
    acts = torch.empty(len(order), width, dtype=compute, device=x.device)
    count = len(tiles[0])
    _gate_up[(triton.cdiv(width, sizes["BLOCK_N"]), count)](
        x, order, *tiles, table, acts, TOP_K=top_k, N=width, K=hidden, **sizes
    )
    parts = torch.empty(len(order), hidden, dtype=torch.float32, device=x.device)
    _down[(triton.cdiv(hidden, sizes["BLOCK_N"]), count)](
        acts, order, weights.float().contiguous(), *tiles, table, parts, N=hidden, K=width, **sizes
    )
    return parts.view(rows, top_k, hidden).sum(1)


def _tile_rows(average: float) -> int:
    """Rows of a tile, by the rows that an expert has on average."""
    if interpreted():
        return 16
    return 16 if average <= 12 else 32 if average <= 24 else 64 if average <= 96 else 128


def _tiles(ids: Tensor, experts: int, block: int) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """The order of rows by expert, and of each possible tile its expert, its first row in that order and the end."""
    count = min(len(ids), len(ids) // block + experts)
    expert, first, end = (torch.empty(count, dtype=torch.int64, device=ids.device) for _ in range(3))
    padded = triton.next_power_of_2(experts)
    _plan[(triton.cdiv(count, _PLANNED),)](
        ids, expert, first, end, len(ids), count, EXPERTS=experts, PADDED=padded, ROWS=block, TILES=_PLANNED,
        BLOCK=1024, num_warps=8,
    )  # fmt: skip
    return ids.argsort(stable=True), (expert, first, end)
