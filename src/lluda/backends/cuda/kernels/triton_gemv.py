"""Products of a few rows with a matrix, in Triton: what stands before and behind them is done in the same pass.

A program takes ``BLOCK_N`` rows of the weight whole, so that all its reads are under way at once, and asks for them
before it waits for its input. RMSNorm is computed again by every program: reading a row of a few KB from the cache is
cheaper than a launch. Sums are float32; inputs of the product are rounded once to the weight's dtype (numerics.md).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lluda.backends.cuda.kernels.triton_formats import (
    TYPES,
    aside,
    compute_of,
    dot,
    fetch,
    form_of,
    place_of,
    row,
    settle,
    tile_columns,
)
from lluda.backends.cuda.kernels.triton_target import interpreted, kernel, launch_options, take_input
from lluda.backends.weight import Weight

MAX_ROWS = 4
"""Rows of one call: each is one more pass of multiplications over weights that are in registers."""

_WIDEST = 4096


@kernel()
def _project(x_ptr, norm_ptr, bias_ptr, out_ptr, w0, w1, w2, eps,
             N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr,
             BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, CHUNKS: tl.constexpr, FORM: tl.constexpr,
             WEIGHT: tl.constexpr, COMPUTE: tl.constexpr, NORM: tl.constexpr, BIAS: tl.constexpr,
             PDL: tl.constexpr):  # fmt: skip
    pid = tl.program_id(0)
    first: tl.constexpr = (N0 + BLOCK_N - 1) // BLOCK_N
    second: tl.constexpr = first + (N1 + BLOCK_N - 1) // BLOCK_N
    base = tl.where(pid < first, w0, tl.where(pid < second, w1, w2))
    block = tl.where(pid < first, pid, tl.where(pid < second, pid - first, pid - second))
    count = tl.where(pid < first, N0, tl.where(pid < second, N1, N2))
    place = tl.where(pid < first, 0, tl.where(pid < second, N0, N0 + N1))
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    w, beside = fetch(base, n, count, 0, K, BLOCK_K, FORM, WEIGHT)
    begin, end, entry, factor = aside(base, n, count, K, FORM)
    take_input(PDL)
    for r in tl.static_range(ROWS):
        x_row = x_ptr + r * K
        x, scale = row(x_row, norm_ptr, eps, 0, K, CHUNKS, BLOCK_K, NORM, COMPUTE, FORM)
        acc = dot(w, beside, x, BLOCK_N, BLOCK_K, FORM)
        for chunk in tl.static_range(1, CHUNKS):
            more, its = fetch(base, n, count, chunk * BLOCK_K, K, BLOCK_K, FORM, WEIGHT)
            x, scale = row(x_row, norm_ptr, eps, chunk * BLOCK_K, K, CHUNKS, BLOCK_K, NORM, COMPUTE, FORM)
            acc += dot(more, its, x, BLOCK_N, BLOCK_K, FORM)
        acc = settle(acc, begin, end, entry, factor, base, n, count, x_row, norm_ptr, scale, K, NORM, COMPUTE, FORM)
        if BIAS:
            acc += tl.load(bias_ptr + n, mask=n < count, other=0.0)
        tl.store(out_ptr + r * (N0 + N1 + N2) + place + n, acc, mask=n < count)


@kernel()
def _add(a_ptr, base, scale_ptr, x_ptr,
         N: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
         CHUNKS: tl.constexpr, FORM: tl.constexpr, WEIGHT: tl.constexpr, SCALE: tl.constexpr,
         PDL: tl.constexpr):  # fmt: skip
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    w, beside = fetch(base, n, N, 0, K, BLOCK_K, FORM, WEIGHT)
    begin, end, entry, factor = aside(base, n, N, K, FORM)
    take_input(PDL)
    for r in tl.static_range(ROWS):
        a_row = a_ptr + r * K
        x = tl.load(x_ptr + r * N + n, mask=n < N, other=0.0)
        a, scale = row(a_row, a_row, 0.0, 0, K, CHUNKS, BLOCK_K, False, WEIGHT, FORM)
        acc = dot(w, beside, a, BLOCK_N, BLOCK_K, FORM)
        for chunk in tl.static_range(1, CHUNKS):
            more, its = fetch(base, n, N, chunk * BLOCK_K, K, BLOCK_K, FORM, WEIGHT)
            a, scale = row(a_row, a_row, 0.0, chunk * BLOCK_K, K, CHUNKS, BLOCK_K, False, WEIGHT, FORM)
            acc += dot(more, its, a, BLOCK_N, BLOCK_K, FORM)
        acc = settle(acc, begin, end, entry, factor, base, n, N, a_row, a_row, scale, K, False, WEIGHT, FORM)
        if SCALE:
            acc *= tl.load(scale_ptr + n, mask=n < N, other=0.0)
        tl.store(x_ptr + r * N + n, x + acc, mask=n < N)


@kernel()
def _gated(x_ptr, norm_ptr, gate_base, up_base, out_ptr, eps,
           N: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
           CHUNKS: tl.constexpr, FORM: tl.constexpr, WEIGHT: tl.constexpr, NORM: tl.constexpr,
           PDL: tl.constexpr):  # fmt: skip
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    gate_w, gate_its = fetch(gate_base, n, N, 0, K, BLOCK_K, FORM, WEIGHT)
    up_w, up_its = fetch(up_base, n, N, 0, K, BLOCK_K, FORM, WEIGHT)
    gate_begin, gate_end, gate_entry, gate_factor = aside(gate_base, n, N, K, FORM)
    up_begin, up_end, up_entry, up_factor = aside(up_base, n, N, K, FORM)
    take_input(PDL)
    for r in tl.static_range(ROWS):
        x_row = x_ptr + r * K
        x, scale = row(x_row, norm_ptr, eps, 0, K, CHUNKS, BLOCK_K, NORM, WEIGHT, FORM)
        gate, up = dot(gate_w, gate_its, x, BLOCK_N, BLOCK_K, FORM), dot(up_w, up_its, x, BLOCK_N, BLOCK_K, FORM)
        for chunk in tl.static_range(1, CHUNKS):
            start = chunk * BLOCK_K
            x, scale = row(x_row, norm_ptr, eps, start, K, CHUNKS, BLOCK_K, NORM, WEIGHT, FORM)
            more, its = fetch(gate_base, n, N, start, K, BLOCK_K, FORM, WEIGHT)
            gate += dot(more, its, x, BLOCK_N, BLOCK_K, FORM)
            more, its = fetch(up_base, n, N, start, K, BLOCK_K, FORM, WEIGHT)
            up += dot(more, its, x, BLOCK_N, BLOCK_K, FORM)
        gate = settle(gate, gate_begin, gate_end, gate_entry, gate_factor, gate_base, n, N, x_row, norm_ptr, scale,
                      K, NORM, WEIGHT, FORM)  # fmt: skip
        up = settle(up, up_begin, up_end, up_entry, up_factor, up_base, n, N, x_row, norm_ptr, scale,
                    K, NORM, WEIGHT, FORM)  # fmt: skip
        out = gate / (1.0 + tl.exp(-gate)) * up
        tl.store(out_ptr + r * N + n, out.to(out_ptr.dtype.element_ty), mask=n < N)


def project(
    x: Tensor,
    norm: tuple[Tensor, float] | None,
    weights: list[Weight],
    *,
    pdl: bool,
    out: Tensor | None = None,
    bias: Tensor | None = None,
    compute: torch.dtype | None = None,
    tile: tuple[int, int] | None = None,
) -> Tensor:
    """``norm(x) @ w.T`` for one to three matrices ``[n, K]`` of one form side by side: float32 ``[rows, sum of n]`` (or
    ``out``).

    ``x [rows, K]`` (at most MAX_ROWS) in float32, or as the product takes it without ``norm``; ``bias`` belongs to a
    single matrix. ``compute``: what inputs are rounded to, the weight's dtype if None.
    """
    rows, width = x.shape
    assert rows <= MAX_ROWS and len(weights) <= 3 and x.is_contiguous(), f"{rows} rows, {len(weights)} matrices"
    counts = [weight.out_features for weight in weights] + [0] * (3 - len(weights))
    places = [place_of(weight) for weight in weights] + [0] * (3 - len(weights))
    if out is None:
        out = torch.empty(rows, sum(counts), dtype=torch.float32, device=x.device)
    block_n, warps = tile or _tile(sum(counts), width)
    block_k, chunks = _columns(width, weights[0])
    grid = (sum(triton.cdiv(count, block_n) for count in counts),)
    _project[grid](
        x, norm[0] if norm else x, bias if bias is not None else x, out, *places, norm[1] if norm else 0.0,
        N0=counts[0], N1=counts[1], N2=counts[2], K=width, ROWS=rows, BLOCK_N=block_n, BLOCK_K=block_k, CHUNKS=chunks,
        COMPUTE=TYPES[compute or compute_of(weights[0])], NORM=norm is not None, BIAS=bias is not None,
        **form_of(weights[0]), **launch_options(pdl, warps),
    )  # fmt: skip
    return out


def add(a: Tensor, weight: Weight, x: Tensor, scale: Tensor | None, *, pdl: bool,
        tile: tuple[int, int] | None = None) -> Tensor:  # fmt: skip
    """``x += scale * (a @ weight.T)``: rows ``a [rows, K]`` as the product takes them, residual ``x [rows, N]``,
    changed in place; ``scale [N]`` or None."""
    rows, width = a.shape
    assert rows <= MAX_ROWS and a.is_contiguous() and x.is_contiguous(), f"{rows} rows"
    count = weight.out_features
    block_n, warps = tile or _tile(count, width)
    block_k, chunks = _columns(width, weight)
    _add[(triton.cdiv(count, block_n),)](
        a, place_of(weight), scale if scale is not None else x, x, N=count, K=width, ROWS=rows, BLOCK_N=block_n,
        BLOCK_K=block_k, CHUNKS=chunks, SCALE=scale is not None, **form_of(weight), **launch_options(pdl, warps),
    )  # fmt: skip
    return x


def gated(x: Tensor, norm: tuple[Tensor, float] | None, gate: Weight, up: Weight, *, pdl: bool,
          tile: tuple[int, int] | None = None) -> Tensor:  # fmt: skip
    """``silu(norm(x) @ gate.T) * (norm(x) @ up.T)``, rounded to what products take: ``[rows, N]``."""
    rows, width = x.shape
    assert rows <= MAX_ROWS and x.is_contiguous(), f"{rows} rows"
    count = gate.out_features
    out = torch.empty(rows, count, dtype=compute_of(gate), device=x.device)
    block_n, warps = tile or _tile(2 * count, 2 * width)
    block_k, chunks = _columns(width, gate)
    _gated[(triton.cdiv(count, block_n),)](
        x, norm[0] if norm else x, place_of(gate), place_of(up), out, norm[1] if norm else 0.0, N=count, K=width,
        ROWS=rows, BLOCK_N=block_n, BLOCK_K=block_k, CHUNKS=chunks, NORM=norm is not None, **form_of(gate),
        **launch_options(pdl, warps),
    )  # fmt: skip
    return out


def _columns(width: int, weight: Weight) -> tuple[int, int]:
    """Columns taken at once, and how many times."""
    block = tile_columns(width, weight, _WIDEST)
    return block, triton.cdiv(width, block)


def _tile(outputs: int, width: int) -> tuple[int, int]:
    """Rows of the weight for one program, and its warps: 8 to 16 KB of weights, enough programs for a large GPU (the
    interpreter runs them one by one)."""
    if interpreted():
        return 32, 2
    rows = max(1, min(8192 // min(triton.next_power_of_2(width), _WIDEST), 32))
    while rows > 1 and outputs // rows < 256:
        rows //= 2
    return rows, 2
