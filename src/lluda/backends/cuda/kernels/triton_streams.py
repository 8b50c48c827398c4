"""The past of several streams of a vocoder, in Triton: what a causal convolution sees of it beside the new rows."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lluda.backends.cuda.kernels.triton_target import kernel, launch_options, take_input

_ROWS = 8
_COLUMNS = 128


@triton.jit
def _row(x_ptr, context_ptr, frequency, amplitude, e, count, i_least, columns, inside, WIDTH: tl.constexpr,
         SNAKE: tl.constexpr):  # fmt: skip
    """Rows ``e`` of the context and the new rows behind it; zeros where nothing was before the stream began."""
    fresh = e - count
    there = fresh >= i_least
    new = tl.load(x_ptr + fresh[:, None] * WIDTH + columns[None, :], mask=inside & ((fresh >= 0) & there)[:, None],
                  other=0.0).to(tl.float32)  # fmt: skip
    if SNAKE:
        wave = tl.sin(new * frequency[None, :])
        new = new + amplitude[None, :] * (wave * wave)
    old = tl.load(context_ptr + e[:, None] * WIDTH + columns[None, :], mask=inside & ((fresh < 0) & there)[:, None],
                  other=0.0).to(tl.float32)  # fmt: skip
    return tl.where((fresh < 0)[:, None], old, new)


@kernel(do_not_specialize=["count_streams", "rows", "missing", "count", "taps", "dilation"])
def _windows(x_ptr, context_ptr, streams_ptr, frames_ptr, frequency_ptr, amplitude_ptr, out_ptr, count_streams, rows,
             missing, count, taps, dilation, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
             SNAKE: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """Programs of the first blocks write windows of the rows, those of the others the context of the next frame, each
    as if it were one more tap."""
    s, block = tl.program_id(0), tl.program_id(1)
    columns = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    held = columns < WIDTH
    frequency = tl.zeros([COLUMNS], tl.float32)
    amplitude = tl.zeros([COLUMNS], tl.float32)
    if SNAKE:
        frequency = tl.load(frequency_ptr + columns, mask=held, other=0.0)
        amplitude = tl.load(amplitude_ptr + columns, mask=held, other=0.0)
    take_input(PDL)
    frames = tl.load(frames_ptr + s)
    # New row i is row `frames * rows + i` of the stream, of which the first `missing` do not exist.
    i_least = missing - frames * rows
    half = count_streams * (count * WIDTH)
    stream = tl.load(streams_ptr + s) * (count * WIDTH)
    before = context_ptr + (frames % 2) * half + stream
    after = context_ptr + ((frames + 1) % 2) * half + stream
    x_ptr += s.to(tl.int64) * rows * WIDTH
    blocks = tl.cdiv(rows, ROWS)
    is_kept = block >= blocks
    i = tl.where(is_kept, block - blocks, block) * ROWS + tl.arange(0, ROWS)
    inside = (i < tl.where(is_kept, count, rows))[:, None] & held[None, :]
    out = out_ptr + (s.to(tl.int64) * rows + i)[:, None] * (taps * WIDTH) + columns[None, :]
    for tap in range(0, tl.where(is_kept, 1, taps)):
        e = i + tl.where(is_kept, rows, tap * dilation)
        values = _row(x_ptr, before, frequency, amplitude, e, count, i_least, columns, inside, WIDTH, SNAKE)
        if is_kept:
            kept = after + i[:, None] * WIDTH + columns[None, :]
            tl.store(kept, values.to(context_ptr.dtype.element_ty), mask=inside)
        else:
            tl.store(out + tap * WIDTH, values.to(out_ptr.dtype.element_ty), mask=inside)


def windows(
    x: Tensor,
    context: Tensor | None,
    streams: Tensor,
    frames: Tensor,
    act: tuple[Tensor, Tensor] | None,
    dtype: torch.dtype,
    *,
    taps: int,
    dilation: int,
    missing: int,
    pdl: bool,
) -> Tensor:
    """What a causal convolution of ``taps`` rows ``dilation`` apart multiplies for each row of ``x [streams, rows,
    channels]``: ``[streams * rows, taps * channels]`` in ``dtype``, of SnakeBeta (``act``: its frequency and amplitude)
    of the rows.

    Args:
        context: as `StreamContexts.of`, read and written; None of one tap.
        streams: of each the number by which ``context`` knows it; ``frames``: how many frames of it went before. Both
            int64 ``[streams]``.
        missing: rows at a stream's beginning that do not exist; zeros in their place, as before them.
    """
    count_streams, rows, width = x.shape
    count = (taps - 1) * dilation
    out = torch.empty(count_streams * rows, taps * width, dtype=dtype, device=x.device)
    kept = x if context is None else context
    frequency, amplitude = act or (x, x)
    columns = min(_COLUMNS, triton.next_power_of_2(width))
    grid = count_streams, triton.cdiv(rows, _ROWS) + triton.cdiv(count, _ROWS), triton.cdiv(width, columns)
    _windows[grid](
        x.contiguous(), kept, streams, frames, frequency, amplitude, out, kept.shape[1], rows, missing, count, taps,
        dilation, WIDTH=width, ROWS=_ROWS, COLUMNS=columns, SNAKE=act is not None, **launch_options(pdl, 4),
    )  # fmt: skip
    return out
