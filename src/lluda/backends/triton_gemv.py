"""Products of a few rows with a matrix, in Triton: what stands before and behind them is done in the same pass.

A program takes ``BLOCK_N`` rows of the weight whole, so that all its reads are under way at once, and asks for them
before it waits for its input. RMSNorm is computed again by every program: reading a row of a few KB from the cache is
cheaper than a launch. Sums are float32; inputs of the product are rounded once to the weight's dtype (numerics.md).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lluda.backends.triton_target import launch_options, take_input

MAX_ROWS = 4
"""Rows of one call: each is one more pass of multiplications over weights that are in registers."""

_WIDEST = 4096
_TYPES = {torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}


@triton.jit
def _row(x_ptr, norm_ptr, eps, r, start, K: tl.constexpr, CHUNKS: tl.constexpr, BLOCK_K: tl.constexpr,
         NORM: tl.constexpr, COMPUTE: tl.constexpr):  # fmt: skip
    """Columns ``start`` on of row ``r``, normalised, as the product takes them: float32 values of COMPUTE's grid."""
    cols = tl.arange(0, BLOCK_K)
    x = tl.load(x_ptr + r * K + start + cols, mask=start + cols < K, other=0.0).to(tl.float32)
    if NORM:
        if CHUNKS == 1:
            total = tl.sum(x * x, 0)
        else:
            total = 0.0
            for chunk in tl.static_range(CHUNKS):
                part = tl.load(x_ptr + r * K + chunk * BLOCK_K + cols, mask=chunk * BLOCK_K + cols < K, other=0.0)
                part = part.to(tl.float32)
                total += tl.sum(part * part, 0)
        weight = tl.load(norm_ptr + start + cols, mask=start + cols < K, other=0.0)
        x = x * tl.rsqrt(total / K + eps) * weight
    return x.to(COMPUTE).to(tl.float32)


@triton.jit
def _project(x_ptr, norm_ptr, bias_ptr, out_ptr, w0, w1, w2, eps,
             N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr,
             BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, CHUNKS: tl.constexpr, WEIGHT: tl.constexpr,
             COMPUTE: tl.constexpr, NORM: tl.constexpr, BIAS: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    pid = tl.program_id(0)
    first: tl.constexpr = (N0 + BLOCK_N - 1) // BLOCK_N
    second: tl.constexpr = first + (N1 + BLOCK_N - 1) // BLOCK_N
    base = tl.where(pid < first, w0, tl.where(pid < second, w1, w2))
    block = tl.where(pid < first, pid, tl.where(pid < second, pid - first, pid - second))
    count = tl.where(pid < first, N0, tl.where(pid < second, N1, N2))
    place = tl.where(pid < first, 0, tl.where(pid < second, N0, N0 + N1))
    w_ptr = tl.multiple_of(base.to(tl.pointer_type(WEIGHT)), 16)
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    cols = tl.arange(0, BLOCK_K)
    rows = w_ptr + n.to(tl.int64)[:, None] * K
    w = tl.load(rows + cols[None, :], mask=(n < count)[:, None] & (cols < K)[None, :], other=0.0)
    take_input(PDL)
    for r in tl.static_range(ROWS):
        acc = tl.sum(w.to(tl.float32) * _row(x_ptr, norm_ptr, eps, r, 0, K, CHUNKS, BLOCK_K, NORM, COMPUTE)[None, :], 1)
        for chunk in tl.static_range(1, CHUNKS):
            at = chunk * BLOCK_K + cols
            more = tl.load(rows + at[None, :], mask=(n < count)[:, None] & (at < K)[None, :], other=0.0)
            x = _row(x_ptr, norm_ptr, eps, r, chunk * BLOCK_K, K, CHUNKS, BLOCK_K, NORM, COMPUTE)
            acc += tl.sum(more.to(tl.float32) * x[None, :], 1)
        if BIAS:
            acc += tl.load(bias_ptr + n, mask=n < count, other=0.0)
        tl.store(out_ptr + r * (N0 + N1 + N2) + place + n, acc, mask=n < count)


@triton.jit
def _add(a_ptr, w_ptr, scale_ptr, x_ptr,
         N: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
         CHUNKS: tl.constexpr, SCALE: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    cols = tl.arange(0, BLOCK_K)
    rows = w_ptr + n.to(tl.int64)[:, None] * K
    w = tl.load(rows + cols[None, :], mask=(n < N)[:, None] & (cols < K)[None, :], other=0.0)
    take_input(PDL)
    for r in tl.static_range(ROWS):
        x = tl.load(x_ptr + r * N + n, mask=n < N, other=0.0)
        a = tl.load(a_ptr + r * K + cols, mask=cols < K, other=0.0).to(tl.float32)
        acc = tl.sum(w.to(tl.float32) * a[None, :], 1)
        for chunk in tl.static_range(1, CHUNKS):
            at = chunk * BLOCK_K + cols
            more = tl.load(rows + at[None, :], mask=(n < N)[:, None] & (at < K)[None, :], other=0.0)
            a = tl.load(a_ptr + r * K + at, mask=at < K, other=0.0).to(tl.float32)
            acc += tl.sum(more.to(tl.float32) * a[None, :], 1)
        if SCALE:
            acc *= tl.load(scale_ptr + n, mask=n < N, other=0.0)
        tl.store(x_ptr + r * N + n, x + acc, mask=n < N)


@triton.jit
def _gated(x_ptr, norm_ptr, gate_ptr, up_ptr, out_ptr, eps,
           N: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
           CHUNKS: tl.constexpr, COMPUTE: tl.constexpr, NORM: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    cols = tl.arange(0, BLOCK_K)
    at_row = n.to(tl.int64)[:, None] * K
    inside = (n < N)[:, None] & (cols < K)[None, :]
    gate_w = tl.load(gate_ptr + at_row + cols[None, :], mask=inside, other=0.0)
    up_w = tl.load(up_ptr + at_row + cols[None, :], mask=inside, other=0.0)
    take_input(PDL)
    for r in tl.static_range(ROWS):
        x = _row(x_ptr, norm_ptr, eps, r, 0, K, CHUNKS, BLOCK_K, NORM, COMPUTE)[None, :]
        gate, up = tl.sum(gate_w.to(tl.float32) * x, 1), tl.sum(up_w.to(tl.float32) * x, 1)
        for chunk in tl.static_range(1, CHUNKS):
            at = chunk * BLOCK_K + cols
            more = (n < N)[:, None] & (at < K)[None, :]
            x = _row(x_ptr, norm_ptr, eps, r, chunk * BLOCK_K, K, CHUNKS, BLOCK_K, NORM, COMPUTE)[None, :]
            gate += tl.sum(tl.load(gate_ptr + at_row + at[None, :], mask=more, other=0.0).to(tl.float32) * x, 1)
            up += tl.sum(tl.load(up_ptr + at_row + at[None, :], mask=more, other=0.0).to(tl.float32) * x, 1)
        out = gate / (1.0 + tl.exp(-gate)) * up
        tl.store(out_ptr + r * N + n, out.to(out_ptr.dtype.element_ty), mask=n < N)


def project(
    x: Tensor,
    norm: tuple[Tensor, float] | None,
    weights: list[Tensor],
    *,
    pdl: bool,
    out: Tensor | None = None,
    bias: Tensor | None = None,
    compute: torch.dtype | None = None,
    tile: tuple[int, int] | None = None,
) -> Tensor:
    """``norm(x) @ w.T`` for one to three matrices ``[n, K]`` side by side: float32 ``[rows, sum of n]`` (or ``out``).

    ``x [rows, K]`` (at most MAX_ROWS) in float32, or as the product takes it without ``norm``; ``bias`` belongs to a
    single matrix. ``compute``: what inputs are rounded to, the weight's dtype if None.
    """
    rows, width = x.shape
    assert rows <= MAX_ROWS and len(weights) <= 3 and x.is_contiguous(), f"{rows} rows, {len(weights)} matrices"
    counts = [len(weight) for weight in weights] + [0] * (3 - len(weights))
    places = [weight.data_ptr() for weight in weights] + [0] * (3 - len(weights))
    if out is None:
        out = torch.empty(rows, sum(counts), dtype=torch.float32, device=x.device)
    block_n, warps = tile or _tile(sum(counts), width)
    block_k, chunks = _columns(width)
    grid = (sum(triton.cdiv(count, block_n) for count in counts),)
    _project[grid](
        x, norm[0] if norm else x, bias if bias is not None else x, out, *places, norm[1] if norm else 0.0,
        N0=counts[0], N1=counts[1], N2=counts[2], K=width, ROWS=rows, BLOCK_N=block_n, BLOCK_K=block_k, CHUNKS=chunks,
        WEIGHT=_TYPES[weights[0].dtype], COMPUTE=_TYPES[compute or weights[0].dtype], NORM=norm is not None,
        BIAS=bias is not None, **launch_options(pdl, warps),
    )  # fmt: skip
    return out


def add(a: Tensor, weight: Tensor, x: Tensor, scale: Tensor | None, *, pdl: bool,
        tile: tuple[int, int] | None = None) -> Tensor:  # fmt: skip
    """``x += scale * (a @ weight.T)``: rows ``a [rows, K]`` in the weight's dtype, residual ``x [rows, N]``, changed in
    place; ``scale [N]`` or None."""
    rows, width = a.shape
    assert rows <= MAX_ROWS and a.is_contiguous() and x.is_contiguous(), f"{rows} rows"
    block_n, warps = tile or _tile(len(weight), width)
    block_k, chunks = _columns(width)
    _add[(triton.cdiv(len(weight), block_n),)](
        a, weight, scale if scale is not None else x, x, N=len(weight), K=width, ROWS=rows, BLOCK_N=block_n,
        BLOCK_K=block_k, CHUNKS=chunks, SCALE=scale is not None, **launch_options(pdl, warps),
    )  # fmt: skip
    return x


def gated(x: Tensor, norm: tuple[Tensor, float] | None, gate: Tensor, up: Tensor, *, pdl: bool,
          tile: tuple[int, int] | None = None) -> Tensor:  # fmt: skip
    """``silu(norm(x) @ gate.T) * (norm(x) @ up.T)`` in the weights' dtype: ``[rows, N]``."""
    rows, width = x.shape
    assert rows <= MAX_ROWS and x.is_contiguous(), f"{rows} rows"
    out = torch.empty(rows, len(gate), dtype=gate.dtype, device=x.device)
    block_n, warps = tile or _tile(2 * len(gate), 2 * width)
    block_k, chunks = _columns(width)
    _gated[(triton.cdiv(len(gate), block_n),)](
        x, norm[0] if norm else x, gate, up, out, norm[1] if norm else 0.0, N=len(gate), K=width, ROWS=rows,
        BLOCK_N=block_n, BLOCK_K=block_k, CHUNKS=chunks, COMPUTE=_TYPES[gate.dtype], NORM=norm is not None,
        **launch_options(pdl, warps),
    )  # fmt: skip
    return out


def _columns(width: int) -> tuple[int, int]:
    """Columns taken at once, and how many times."""
    block = min(triton.next_power_of_2(width), _WIDEST)
    return block, triton.cdiv(width, block)


def _tile(outputs: int, width: int) -> tuple[int, int]:
    """Rows of the weight for one program, and its warps: 8 to 16 KB of weights, enough programs for a large GPU."""
    rows = max(1, min(8192 // min(triton.next_power_of_2(width), _WIDEST), 32))
    while rows > 1 and outputs // rows < 256:
        rows //= 2
    return rows, 2
