"""A mixture of experts for many rows, in Triton: rows sorted by expert, one launch for all experts' products.

A tile is up to ``rows`` rows of one expert. Which tiles there are is worked out on the device, so that nothing waits
for the host; as many programs are started as there could be, and those without a tile end at once.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lluda.backends.cuda.kernels.triton_target import interpreted, kernel, launch_options, product, take_input

_SORTED = 4096  # ids that are looked at at once
_WIDTH = 1024
_TYPES = {torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}


@dataclass(frozen=True, slots=True)
class Tile:
    """What one program of a product computes: ``columns`` of so many rows, ``depth`` of the sum at a time."""

    columns: int
    depth: int
    warps: int
    stages: int

    def options(self, *, pdl: bool) -> dict[str, Any]:
        """Keyword arguments of a kernel's launch."""
        return {
            "BLOCK_N": self.columns, "BLOCK_K": self.depth, "num_stages": self.stages, **launch_options(pdl, self.warps)
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tiling:
    """Tiles of ``rows`` rows, of the gate and up product and of the down product."""

    rows: int
    gate_up: Tile
    down: Tile


@triton.jit
def _weights(w_ptr, n, cols, N: tl.constexpr, K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """Rows ``n`` and columns ``cols`` of a matrix ``[N, K]``, the other way round; whole tiles without a mask."""
    at = w_ptr + n[None, :] * K + cols[:, None]
    if N % BLOCK_N == 0 and K % BLOCK_K == 0:
        return tl.load(at)
    else:
        return tl.load(at, mask=(n < N)[None, :] & (cols < K)[:, None], other=0.0)


@kernel()
def _gate_up(x_ptr, order_ptr, expert_ptr, first_ptr, end_ptr, table_ptr, out_ptr,
             TOP_K: tl.constexpr, N: tl.constexpr, K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
             BLOCK_K: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    tile = tl.program_id(1)
    take_input(PDL)
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
            gate += product(x, _weights(gate_ptr, n, cols, N, K, BLOCK_N, BLOCK_K), PRECISION)
            up += product(x, _weights(up_ptr, n, cols, N, K, BLOCK_N, BLOCK_K), PRECISION)
        out = (gate / (1.0 + tl.exp(-gate)) * up).to(COMPUTE)
        tl.store(out_ptr + m.to(tl.int64)[:, None] * N + n[None, :], out, mask=(m < end)[:, None] & (n < N)[None, :])


@kernel()
def _down(a_ptr, order_ptr, expert_ptr, first_ptr, end_ptr, table_ptr, out_ptr,
          N: tl.constexpr, K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
          COMPUTE: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    tile = tl.program_id(1)
    take_input(PDL)
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
            sums += product(a, _weights(down_ptr, n, cols, N, K, BLOCK_N, BLOCK_K), PRECISION)
        place = tl.load(order_ptr + m, mask=m < end, other=0)
        tl.store(out_ptr + place[:, None] * N + n[None, :], sums.to(COMPUTE),
                 mask=(m < end)[:, None] & (n < N)[None, :])  # fmt: skip


@kernel()
def _plan(ids_ptr, order_ptr, expert_ptr, first_ptr, end_ptr, count, tiles,
          EXPERTS: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
          PDL: tl.constexpr):  # fmt: skip
    """Of one expert: its rows' places in the order by expert, and its tiles; of the last also those without rows."""
    expert = tl.program_id(0)
    e = tl.arange(0, 2 * PADDED)
    counts = tl.zeros([2 * PADDED], tl.int32)
    take_input(PDL)
    for start in range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK)
        # What is past the end is counted behind the experts.
        counts += tl.histogram(tl.load(ids_ptr + i, mask=i < count, other=PADDED).to(tl.int32), 2 * PADDED)
    counts = tl.where(e < EXPERTS, counts, 0)
    per = (counts + ROWS - 1) // ROWS
    first = tl.sum(tl.where(e < expert, counts, 0), 0)
    end = first + tl.sum(tl.where(e == expert, counts, 0), 0)
    tile = tl.sum(tl.where(e < expert, per, 0), 0)
    tile_end = tile + tl.sum(tl.where(e == expert, per, 0), 0)
    for t in range(tile, tl.where(expert == EXPERTS - 1, tiles, tile_end), PADDED):
        at = t + tl.arange(0, PADDED)
        inside = at < tl.where(expert == EXPERTS - 1, tiles, tile_end)
        tl.store(expert_ptr + at, (expert + at * 0).to(tl.int64), mask=inside)
        tl.store(first_ptr + at, (first + (at - tile) * ROWS).to(tl.int64), mask=inside)
        tl.store(end_ptr + at, tl.where(at < tile_end, end, 0).to(tl.int64), mask=inside)
    for start in range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK)
        mine = (tl.load(ids_ptr + i, mask=i < count, other=PADDED) == expert).to(tl.int32)
        tl.store(order_ptr + first + tl.cumsum(mine, 0) - 1, i.to(tl.int64), mask=mine > 0)
        first += tl.sum(mine, 0)


@kernel()
def _gather(part_ptr, weight_ptr, x_ptr, out_ptr, HIDDEN: tl.constexpr, TOP_K: tl.constexpr, BLOCK: tl.constexpr,
            PDL: tl.constexpr):  # fmt: skip
    r = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = cols < HIDDEN
    sums = tl.zeros([BLOCK], tl.float32)
    take_input(PDL)
    for slot in tl.static_range(TOP_K):
        part = tl.load(part_ptr + (r * TOP_K + slot) * HIDDEN + cols, mask=inside, other=0.0).to(tl.float32)
        sums += tl.load(weight_ptr + r * TOP_K + slot) * part
    x = tl.load(x_ptr + r * HIDDEN + cols, mask=inside, other=0.0)
    tl.store(out_ptr + r * HIDDEN + cols, x + sums, mask=inside)


@kernel()
def _route(logits_ptr, weight_ptr, id_ptr, EXPERTS: tl.constexpr, PADDED: tl.constexpr, TOP_K: tl.constexpr,
           NORMALISE: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    r = tl.program_id(0)
    e = tl.arange(0, PADDED)
    take_input(PDL)
    logit = tl.load(logits_ptr + r * EXPERTS + e, mask=e < EXPERTS, other=float("-inf"))
    # NaN comes last, so that every place is written with an expert that there is.
    order = tl.where(logit != logit, float("-inf"), logit)
    above = order[None, :] > order[:, None]
    level = (order[None, :] == order[:, None]) & (e[None, :] < e[:, None])
    rank = tl.sum((above | level).to(tl.int32), 1)
    chance = tl.exp(logit - tl.max(logit, 0))
    total = tl.sum(tl.where(rank < TOP_K, chance, 0.0), 0) if NORMALISE else tl.sum(chance, 0)
    chosen = (rank < TOP_K) & (e < EXPERTS)
    tl.store(weight_ptr + r * TOP_K + rank, chance / total, mask=chosen)
    tl.store(id_ptr + r * TOP_K + rank, e.to(tl.int64), mask=chosen)


def route(logits: Tensor, top_k: int, *, normalise: bool, pdl: bool) -> tuple[Tensor, Tensor]:
    """Of each row of float32 ``logits [rows, experts]`` the ``top_k`` largest: their softmax over all experts, or over
    these if ``normalise``, and their ids (int64), both ``[rows, top_k]``."""
    rows, experts = logits.shape
    weights = torch.empty(rows, top_k, dtype=torch.float32, device=logits.device)
    ids = torch.empty(rows, top_k, dtype=torch.int64, device=logits.device)
    _route[(rows,)](
        logits, weights, ids, EXPERTS=experts, PADDED=triton.next_power_of_2(experts), TOP_K=top_k,
        NORMALISE=normalise, **launch_options(pdl, 4),
    )  # fmt: skip
    return weights, ids


def grouped_mixture(
    x: Tensor, normed: Tensor, weights: Tensor, ids: Tensor, table: Tensor, *, experts: int, width: int,
    pdl: bool, onto: Tensor | None = None, tiling: Tiling | None = None,
) -> Tensor:  # fmt: skip
    """``x``, or in its place ``onto`` (float32), plus the chosen experts of rows ``normed`` (the compute dtype), all
    ``[rows, hidden]``, each rounded to the compute dtype before it is weighted.

    ``weights`` (float32) and ``ids`` (int64) are ``[rows, top_k]``; ``table`` as in `triton_mixture.mixture`, of plain
    matrices of the compute dtype.
    """
    base = x if onto is None else onto
    rows, hidden = x.shape
    top_k, compute = ids.shape[1], normed.dtype
    tiling = tiling or choose_tiling(rows * top_k / experts)
    order, tiles = _tiles(ids.flatten(), experts, tiling.rows, pdl=pdl)
    kind = {
        "BLOCK_M": tiling.rows, "COMPUTE": _TYPES[compute], "PRECISION": "ieee" if compute == torch.float32 else "tf32"
    }  # fmt: skip
    acts = torch.empty(len(order), width, dtype=compute, device=x.device)
    count = len(tiles[0])
    _gate_up[(triton.cdiv(width, tiling.gate_up.columns), count)](
        normed, order, *tiles, table, acts, TOP_K=top_k, N=width, K=hidden, **kind, **tiling.gate_up.options(pdl=pdl)
    )
    parts = torch.empty(len(order), hidden, dtype=compute, device=x.device)
    _down[(triton.cdiv(hidden, tiling.down.columns), count)](
        acts, order, *tiles, table, parts, N=hidden, K=width, **kind, **tiling.down.options(pdl=pdl)
    )
    out = torch.empty_like(x)
    _gather[(rows, triton.cdiv(hidden, _WIDTH))](
        parts, weights.float().contiguous(), base.contiguous(), out, HIDDEN=hidden, TOP_K=top_k, BLOCK=_WIDTH,
        **launch_options(pdl, 4),
    )  # fmt: skip
    return out


def choose_tiling(average: float) -> Tiling:
    """By the rows that an expert has on average: the more, the more of them share a read of its weights, and the fewer,
    the less of a tile stays empty."""
    if interpreted():
        return Tiling(16, Tile(128, 64, 4, 3), Tile(128, 64, 4, 3))
    if average <= 12:
        return Tiling(16, Tile(32, 256, 4, 3), Tile(32, 128, 2, 4))
    rows = 32 if average <= 24 else 64 if average <= 96 else 128
    if rows == 32:
        return Tiling(rows, Tile(128, 64, 4, 3), Tile(128, 64, 4, 3))
    if rows == 64:
        return Tiling(rows, Tile(64, 64, 4, 3), Tile(128, 64, 4, 3))
    return Tiling(rows, Tile(128, 64, 8, 4), Tile(128, 64, 8, 3))


def _tiles(ids: Tensor, experts: int, block: int, *, pdl: bool) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """The order of rows by expert, and of each possible tile its expert, its first row in that order and the end."""
    count = min(len(ids), len(ids) // block + experts)
    order = torch.empty_like(ids)
    expert, first, end = (torch.empty(count, dtype=torch.int64, device=ids.device) for _ in range(3))
    _plan[(experts,)](
        ids, order, expert, first, end, len(ids), count, EXPERTS=experts, PADDED=triton.next_power_of_2(experts),
        ROWS=block, BLOCK=min(_SORTED, triton.next_power_of_2(len(ids))), **launch_options(pdl, 8),
    )  # fmt: skip
    return order, (expert, first, end)
