"""Small passes over rows, in Triton: looked-up rows, RMSNorm, rotary angles, SnakeBeta. One launch each, where torch
takes several."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lluda.backends.cuda.kernels.triton_target import kernel, launch_options, take_input

_BLOCK = 1024
_HEADS = 16  # that a program turns


@kernel()
def _lookup(table_ptr, ids_ptr, out_ptr, stride, limit, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
            PDL: tl.constexpr):  # fmt: skip
    r = tl.program_id(0)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    take_input(PDL)
    # An id outside the table is the caller's to report; reading elsewhere would end the process.
    row = tl.minimum(tl.maximum(tl.load(ids_ptr + r * stride), 0), limit - 1)
    values = tl.load(table_ptr + row * WIDTH + cols, mask=cols < WIDTH, other=0.0).to(tl.float32)
    tl.store(out_ptr + r * WIDTH + cols, values, mask=cols < WIDTH)


@kernel()
def _norm(x_ptr, weight_ptr, out_ptr, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    r = tl.program_id(0)
    cols = tl.arange(0, BLOCK)
    weight = tl.load(weight_ptr + cols, mask=cols < WIDTH, other=0.0)
    take_input(PDL)
    x = tl.load(x_ptr + r.to(tl.int64) * WIDTH + cols, mask=cols < WIDTH, other=0.0).to(tl.float32)
    x = x * tl.rsqrt(tl.sum(x * x, 0) / WIDTH + eps) * weight
    tl.store(out_ptr + r.to(tl.int64) * WIDTH + cols, x.to(out_ptr.dtype.element_ty), mask=cols < WIDTH)


@kernel()
def _add_norm(x_ptr, branch_ptr, weight_ptr, bias_ptr, sum_ptr, out_ptr, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
              ADD: tl.constexpr, NORM: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    cols = tl.arange(0, BLOCK)
    inside = cols < WIDTH
    at = tl.program_id(0).to(tl.int64) * WIDTH + cols
    weight = tl.zeros([BLOCK], tl.float32)
    bias = tl.zeros([BLOCK], tl.float32)
    if NORM:
        weight = tl.load(weight_ptr + cols, mask=inside, other=0.0)
        bias = tl.load(bias_ptr + cols, mask=inside, other=0.0)
    take_input(PDL)
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        x += tl.load(branch_ptr + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(sum_ptr + at, x, mask=inside)
    if NORM:
        mean = tl.sum(x, 0) / WIDTH
        centred = tl.where(inside, x - mean, 0.0)
        scale = tl.rsqrt(tl.sum(centred * centred, 0) / WIDTH + eps)
        tl.store(out_ptr + at, (centred * scale * weight + bias).to(out_ptr.dtype.element_ty), mask=inside)


@kernel(kept=True)
def _angles(positions_ptr, frequencies_ptr, cos_ptr, sin_ptr, row_stride, column_stride, scale, WIDTH: tl.constexpr,
            BLOCK: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    r = tl.program_id(0)
    cols = tl.arange(0, BLOCK)
    frequency = tl.load(frequencies_ptr + cols, mask=cols < WIDTH, other=0.0)
    take_input(PDL)
    position = tl.load(positions_ptr + r * row_stride + cols * column_stride, mask=cols < WIDTH, other=0)
    angle = position.to(tl.float32) * frequency
    tl.store(cos_ptr + r * WIDTH + cols, scale * tl.cos(angle), mask=cols < WIDTH)
    tl.store(sin_ptr + r * WIDTH + cols, scale * tl.sin(angle), mask=cols < WIDTH)


@kernel()
def _snake(x_ptr, frequency_ptr, amplitude_ptr, out_ptr, count, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
           PDL: tl.constexpr):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    take_input(PDL)
    x = tl.load(x_ptr + at, mask=at < count, other=0.0).to(tl.float32)
    channel = at % WIDTH
    frequency = tl.load(frequency_ptr + channel, mask=at < count, other=0.0)
    amplitude = tl.load(amplitude_ptr + channel, mask=at < count, other=0.0)
    wave = tl.sin(x * frequency)
    out = x + amplitude * (wave * wave)
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=at < count)


@kernel()
def _gated_silu(gate_ptr, up_ptr, out_ptr, count, BLOCK: tl.constexpr, PDL: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    take_input(PDL)
    gate = tl.load(gate_ptr + at, mask=at < count, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + at, mask=at < count, other=0.0).to(tl.float32)
    out = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=at < count)


@kernel()
def _rotate(x_ptr, norm_ptr, cos_ptr, sin_ptr, out_ptr, stride, eps, HEADS: tl.constexpr, HALF: tl.constexpr,
            TOGETHER: tl.constexpr, BLOCK: tl.constexpr, NORM: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    r = tl.program_id(0)
    head = tl.program_id(1) * TOGETHER + tl.arange(0, TOGETHER)
    d = tl.arange(0, BLOCK)
    half = d < HALF
    inside = (head < HEADS)[:, None] & half[None, :]
    place = head[:, None] * (2 * HALF) + d[None, :]
    given, at = r.to(tl.int64) * stride + place, r.to(tl.int64) * (HEADS * 2 * HALF) + place
    take_input(PDL)
    a = tl.load(x_ptr + given, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(x_ptr + given + HALF, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        scale = tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / (2 * HALF) + eps)[:, None]
        a = a * scale * tl.load(norm_ptr + d, mask=half, other=0.0)[None, :]
        b = b * scale * tl.load(norm_ptr + HALF + d, mask=half, other=0.0)[None, :]
    cos = tl.load(cos_ptr + r * HALF + d, mask=half, other=0.0)[None, :]
    sin = tl.load(sin_ptr + r * HALF + d, mask=half, other=0.0)[None, :]
    tl.store(out_ptr + at, (a * cos - b * sin).to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(out_ptr + at + HALF, (b * cos + a * sin).to(out_ptr.dtype.element_ty), mask=inside)


def rotate(x: Tensor, norm: tuple[Tensor, float] | None, table: tuple[Tensor, Tensor], dtype: torch.dtype, *,
           pdl: bool) -> Tensor:  # fmt: skip
    """RMSNorm of each head if given, then the half-split rotation by ``table`` (cosines and sines ``[rows, head_dim /
    2]``, float32) of ``x [rows, heads, head_dim]``, whose rows may lie apart, rounded once to ``dtype``."""
    rows, heads, head_dim = x.shape
    x = x if x.stride()[1:] == (head_dim, 1) else x.contiguous()
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    weight, eps = norm or (table[0], 0.0)
    together = min(_HEADS, triton.next_power_of_2(heads))
    _rotate[(rows, triton.cdiv(heads, together))](
        x, weight, *table, out, x.stride(0), eps, HEADS=heads, HALF=head_dim // 2, TOGETHER=together,
        BLOCK=triton.next_power_of_2(head_dim // 2), NORM=norm is not None, **launch_options(pdl, 4),
    )  # fmt: skip
    return out


def lookup(table: Tensor, ids: Tensor, *, pdl: bool) -> Tensor:
    """Rows ``ids`` (int64 ``[rows]``, any stride) of ``table [n, width]`` as float32."""
    width = table.shape[1]
    out = torch.empty(len(ids), width, dtype=torch.float32, device=table.device)
    _lookup[(len(ids), triton.cdiv(width, _BLOCK))](
        table, ids, out, ids.stride(0), len(table), WIDTH=width, BLOCK=_BLOCK, **launch_options(pdl, 4)
    )  # fmt: skip
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype, *, pdl: bool) -> Tensor:
    """RMSNorm over the last axis of contiguous ``x``, computed in float32 and rounded once to ``dtype``."""
    width = x.shape[-1]
    out = torch.empty_like(x, dtype=dtype)
    block = triton.next_power_of_2(width)
    _norm[(x.numel() // width,)](x, weight, out, eps, WIDTH=width, BLOCK=block, **launch_options(pdl, 4))
    return out


def add_norm(
    x: Tensor,
    branch: Tensor | None,
    norm: tuple[Tensor, Tensor, float] | None,
    dtype: torch.dtype,
    *,
    pdl: bool,
) -> tuple[Tensor, Tensor]:
    """``x + branch``, both ``[rows, width]``, the sum in float32 (``x`` itself without a branch); and its LayerNorm
    (weight, bias, epsilon) over the last axis, rounded once to ``dtype`` (the sum itself without a norm)."""
    x, width = x.contiguous(), x.shape[-1]
    total = x if branch is None else torch.empty_like(x, dtype=torch.float32)
    out = total if norm is None else torch.empty_like(x, dtype=dtype)
    weight, bias, eps = norm or (x, x, 0.0)
    block = triton.next_power_of_2(width)
    _add_norm[(x.numel() // width,)](
        x, x if branch is None else branch.contiguous(), weight, bias, total, out, eps, WIDTH=width, BLOCK=block,
        ADD=branch is not None, NORM=norm is not None, **launch_options(pdl, 4),
    )  # fmt: skip
    return total, out


def angles(positions: Tensor, frequencies: Tensor, scale: float, *, pdl: bool) -> tuple[Tensor, Tensor]:
    """Cosines and sines of ``positions [rows, 1 or width] * frequencies [width]``, times ``scale``, float32 ``[rows,
    width]``."""
    rows, width = len(positions), len(frequencies)
    cos, sin = (torch.empty(rows, width, dtype=torch.float32, device=positions.device) for _ in range(2))
    column = positions.stride(1) if positions.shape[1] > 1 else 0
    _angles[(rows,)](
        positions, frequencies, cos, sin, positions.stride(0), column, float(scale), WIDTH=width,
        BLOCK=triton.next_power_of_2(width), **launch_options(pdl, 1),
    )  # fmt: skip
    return cos, sin


def snake(x: Tensor, frequency: Tensor, amplitude: Tensor, dtype: torch.dtype, *, pdl: bool) -> Tensor:
    """``x + amplitude * sin(frequency * x)^2`` of contiguous ``x [rows, channels]``, rounded once to ``dtype``."""
    out = torch.empty_like(x, dtype=dtype)
    grid = (triton.cdiv(x.numel(), _BLOCK),)
    _snake[grid](x, frequency, amplitude, out, x.numel(), WIDTH=x.shape[1], BLOCK=_BLOCK, **launch_options(pdl, 4))
    return out


def gated_silu(gate: Tensor, up: Tensor, dtype: torch.dtype, *, pdl: bool) -> Tensor:
    """``silu(gate) * up`` of contiguous tensors of one shape, computed in float32 and rounded once to ``dtype``."""
    out = torch.empty_like(gate, dtype=dtype)
    grid = (triton.cdiv(gate.numel(), _BLOCK),)
    _gated_silu[grid](gate, up, out, gate.numel(), BLOCK=_BLOCK, **launch_options(pdl, 4))
    return out
