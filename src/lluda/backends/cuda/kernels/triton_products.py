"""Products of 5 to 64 rows with a plain matrix, in Triton, on the matrix units: what stands behind them is done in the
same pass.

A program takes all rows and some outputs, so that each weight is read once. Where that leaves processors idle, the sum
is split among several programs, of which the last to end adds up, always in the same order. Sums are float32.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lluda.backends.cuda.kernels.triton_formats import TYPES, compute_of, place_of
from lluda.backends.cuda.kernels.triton_target import interpreted, kernel, launch_options, product, take_input
from lluda.backends.weight import Weight

MAX_ROWS = 64
"""Rows of one call; more have a library's products."""

_PROGRAMS = 128
"""That a product should have at least, for a large GPU."""

_LEAST_COLUMNS = 512
"""Of the sum in one of its parts, a quarter where few outputs leave most of the GPU idle."""

_FEW_OUTPUTS, _MANY_OUTPUTS = 512, 32768
"""Of routers at most, and of heads at least."""


@dataclass(frozen=True, slots=True)
class Tile:
    """What one program computes: ``outputs`` of a part (of ``splits``) of the sum, ``columns`` of it at a time."""

    outputs: int
    columns: int
    splits: int
    warps: int
    stages: int

    def options(self, rows: int, width: int, *, pdl: bool) -> dict[str, Any]:
        """Keyword arguments of a launch over ``rows`` rows of ``width`` columns."""
        return {
            "K": width, "TOKENS": max(16, triton.next_power_of_2(rows)), "BLOCK_N": self.outputs,
            "BLOCK_K": self.columns, "num_stages": self.stages, **launch_options(pdl, self.warps),
        }  # fmt: skip


@triton.jit
def _sums(x_ptr, base, n, count, first, end, rows, K: tl.constexpr, TOKENS: tl.constexpr, BLOCK_N: tl.constexpr,
          BLOCK_K: tl.constexpr, WHOLE: tl.constexpr, WEIGHT: tl.constexpr):  # fmt: skip
    """Rows of ``x`` times rows ``n`` of the matrix ``[count, K]`` at ``base``, over columns ``first`` to ``end``:
    float32 ``[TOKENS, BLOCK_N]``. Behind the last row it is repeated."""
    w_ptr = tl.multiple_of(base.to(tl.pointer_type(WEIGHT)), 16) + n.to(tl.int64)[None, :] * K
    x_row = x_ptr + tl.minimum(tl.arange(0, TOKENS), rows - 1)[:, None] * K
    sums = tl.zeros([TOKENS, BLOCK_N], tl.float32)
    for start in range(first, end, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        if WHOLE:
            x, w = tl.load(x_row + k[None, :]), tl.load(w_ptr + k[:, None])
        else:
            x = tl.load(x_row + k[None, :], mask=(k < end)[None, :], other=0.0)
            w = tl.load(w_ptr + k[:, None], mask=(n < count)[None, :] & (k < end)[:, None], other=0.0)
        sums += product(x.to(WEIGHT), w, "ieee")
    return sums


@kernel(do_not_specialize=["rows"])
def _project(x_ptr, w0, w1, w2, factor_ptr, out_ptr, part_ptr, counter_ptr, rows,
             N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, K: tl.constexpr, TOKENS: tl.constexpr,
             BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLITS: tl.constexpr, WEIGHT: tl.constexpr,
             BIAS: tl.constexpr, ADD: tl.constexpr, SCALE: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    pid, split = tl.program_id(0), tl.program_id(1)
    first: tl.constexpr = (N0 + BLOCK_N - 1) // BLOCK_N
    second: tl.constexpr = first + (N1 + BLOCK_N - 1) // BLOCK_N
    base = tl.where(pid < first, w0, tl.where(pid < second, w1, w2))
    block = tl.where(pid < first, pid, tl.where(pid < second, pid - first, pid - second))
    count = tl.where(pid < first, N0, tl.where(pid < second, N1, N2))
    place = tl.where(pid < first, 0, tl.where(pid < second, N0, N0 + N1))
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    PER: tl.constexpr = (K + SPLITS * BLOCK_K - 1) // (SPLITS * BLOCK_K) * BLOCK_K
    WHOLE: tl.constexpr = (N0 % BLOCK_N + N1 % BLOCK_N + N2 % BLOCK_N + K % (SPLITS * BLOCK_K)) == 0
    take_input(PDL)
    start = split * PER
    sums = _sums(x_ptr, base, n, count, start, tl.minimum(start + PER, K), rows, K, TOKENS, BLOCK_N, BLOCK_K, WHOLE,
                 WEIGHT)  # fmt: skip
    m = tl.arange(0, TOKENS)
    last = split == 0
    if SPLITS > 1:
        tile = m[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        parts = part_ptr + pid * (SPLITS * TOKENS * BLOCK_N) + tile
        tl.store(parts + split * (TOKENS * BLOCK_N), sums)
        tl.debug_barrier()
        last = tl.atomic_add(counter_ptr + pid, 1) == SPLITS - 1
        if last:
            sums = tl.zeros([TOKENS, BLOCK_N], tl.float32)
            for other in range(0, SPLITS):
                sums += tl.load(parts + other * (TOKENS * BLOCK_N), cache_modifier=".cg")
            tl.store(counter_ptr + pid, 0)
    inside = (m < rows)[:, None] & (n < count)[None, :] & last
    out = out_ptr + m.to(tl.int64)[:, None] * (N0 + N1 + N2) + place + n[None, :]
    if BIAS:
        sums += tl.load(factor_ptr + n, mask=n < count, other=0.0)[None, :]
    if SCALE:
        sums *= tl.load(factor_ptr + n, mask=n < count, other=0.0)[None, :]
    if ADD:
        sums += tl.load(out, mask=inside, other=0.0)
    tl.store(out, sums, mask=inside)


@kernel(do_not_specialize=["rows"])
def _gated(x_ptr, gate_base, up_base, out_ptr, rows, N: tl.constexpr, K: tl.constexpr, TOKENS: tl.constexpr,
           BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, WEIGHT: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, TOKENS)
    k = tl.arange(0, BLOCK_K)
    x_row = x_ptr + tl.minimum(m, rows - 1)[:, None] * K
    gate_ptr = tl.multiple_of(gate_base.to(tl.pointer_type(WEIGHT)), 16) + n.to(tl.int64)[None, :] * K
    up_ptr = tl.multiple_of(up_base.to(tl.pointer_type(WEIGHT)), 16) + n.to(tl.int64)[None, :] * K
    gate = tl.zeros([TOKENS, BLOCK_N], tl.float32)
    up = tl.zeros([TOKENS, BLOCK_N], tl.float32)
    take_input(PDL)
    for start in range(0, K, BLOCK_K):
        cols = start + k
        if K % BLOCK_K == 0 and N % BLOCK_N == 0:
            x = tl.load(x_row + cols[None, :])
            gate_w, up_w = tl.load(gate_ptr + cols[:, None]), tl.load(up_ptr + cols[:, None])
        else:
            inside = (n < N)[None, :] & (cols < K)[:, None]
            x = tl.load(x_row + cols[None, :], mask=(cols < K)[None, :], other=0.0)
            gate_w = tl.load(gate_ptr + cols[:, None], mask=inside, other=0.0)
            up_w = tl.load(up_ptr + cols[:, None], mask=inside, other=0.0)
        gate += product(x, gate_w, "ieee")
        up += product(x, up_w, "ieee")
    out = gate / (1.0 + tl.exp(-gate)) * up
    at = out_ptr + m[:, None] * N + n[None, :]
    tl.store(at, out.to(WEIGHT), mask=(m < rows)[:, None] & (n < N)[None, :])


class SplitScratch:
    """What split sums add up in: zeroed counters. Of one stream of one backend."""

    def __init__(self, device: torch.device) -> None:
        self.counters = torch.zeros(_PROGRAMS, dtype=torch.int32, device=device)


def project(
    x: Tensor,
    weights: list[Weight],
    scratch: SplitScratch,
    *,
    pdl: bool,
    out: Tensor | None = None,
    bias: Tensor | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """``x @ w.T + bias`` for one to three plain matrices ``[n, K]`` side by side: float32 ``[rows, sum of n]``, or
    ``out``. ``x [rows, K]`` (at most MAX_ROWS) in the compute dtype; ``bias`` belongs to a single matrix."""
    if out is None:
        total = sum(weight.out_features for weight in weights)
        out = torch.empty(len(x), total, dtype=torch.float32, device=x.device)
    return _launch(x, weights, scratch, out, bias, tile, pdl=pdl, BIAS=bias is not None, ADD=False, SCALE=False)


def add(
    a: Tensor,
    weight: Weight,
    x: Tensor,
    scale: Tensor | None,
    scratch: SplitScratch,
    *,
    pdl: bool,
    tile: Tile | None = None,
) -> Tensor:
    """``x += scale * (a @ weight.T)``: ``a [rows, K]`` in the compute dtype, residual ``x [rows, N]``, changed in
    place; ``scale [N]`` or None."""
    return _launch(a, [weight], scratch, x, scale, tile, pdl=pdl, BIAS=False, ADD=True, SCALE=scale is not None)


def gated(x: Tensor, gate: Weight, up: Weight, *, pdl: bool, tile: Tile | None = None) -> Tensor:
    """``silu(x @ gate.T) * (x @ up.T)``, rounded to the compute dtype: ``[rows, N]``."""
    rows, width = x.shape
    assert rows <= MAX_ROWS and x.is_contiguous(), f"{rows} rows"
    count = gate.out_features
    out = torch.empty(rows, count, dtype=x.dtype, device=x.device)
    tile = tile or choose_tile(2 * count, width, whole_sums=True)
    _gated[(triton.cdiv(count, tile.outputs),)](
        x, place_of(gate), place_of(up), out, rows, N=count, WEIGHT=TYPES[compute_of(gate)],
        **tile.options(rows, width, pdl=pdl),
    )  # fmt: skip
    return out


def _launch(
    x: Tensor, weights: list[Weight], scratch: SplitScratch, out: Tensor, factor: Tensor | None, tile: Tile | None,
    *, pdl: bool, **kind: bool,
) -> Tensor:  # fmt: skip
    rows, width = x.shape
    assert rows <= MAX_ROWS and len(weights) <= 3, f"{rows} rows, {len(weights)} matrices"
    assert x.is_contiguous() and out.is_contiguous(), "rows lie below each other"
    counts = [weight.out_features for weight in weights] + [0] * (3 - len(weights))
    places = [place_of(weight) for weight in weights] + [0] * (3 - len(weights))
    tile = tile or choose_tile(sum(counts), width)
    blocks = sum(triton.cdiv(count, tile.outputs) for count in counts)
    options = tile.options(rows, width, pdl=pdl)
    parts = scratch.counters
    if tile.splits > 1:
        assert blocks <= len(scratch.counters), f"{blocks} split sums"
        size = blocks * tile.splits * options["TOKENS"] * tile.outputs
        parts = torch.empty(size, dtype=torch.float32, device=x.device)
    _project[(blocks, tile.splits)](
        x, *places, factor if factor is not None else x, out, parts, scratch.counters, rows, N0=counts[0],
        N1=counts[1], N2=counts[2], SPLITS=tile.splits, WEIGHT=TYPES[compute_of(weights[0])], **kind, **options,
    )  # fmt: skip
    return out


def choose_tile(outputs: int, width: int, *, whole_sums: bool = False) -> Tile:
    """The fastest of those tried on an H100, or near it (journal/11-gpu.md): enough programs for a large GPU, of fewer
    outputs each or, unless ``whole_sums``, of split sums."""
    if interpreted():
        return Tile(32, 32, 1 if whole_sums else 2, 4, 1)
    block = 16 if outputs <= _FEW_OUTPUTS else 128 if outputs > _MANY_OUTPUTS else 32
    blocks, splits = triton.cdiv(outputs, block), 1
    least = _LEAST_COLUMNS if block > 16 else _LEAST_COLUMNS // 4
    while not whole_sums and blocks * splits < _PROGRAMS and width // (2 * splits) >= least:
        splits *= 2
    return Tile(block, 128, splits, 2 if block == 16 else 4, 4)
