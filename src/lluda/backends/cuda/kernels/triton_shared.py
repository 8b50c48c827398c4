"""The shared expert of more than a few rows, in Triton: its gate, and what it gates added to the others' sum."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lluda.backends.cuda.kernels.triton_target import kernel, launch_options, take_input


@kernel()
def _add_gated(x_ptr, gate_ptr, part_ptr, out_ptr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    at = tl.program_id(0).to(tl.int64) * WIDTH + column
    gate = tl.load(gate_ptr + column, mask=inside, other=0.0)
    take_input(PDL)
    logit = tl.sum(tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32) * gate, 0)
    part = tl.load(part_ptr + at, mask=inside, other=0.0).to(tl.float32)
    out = tl.load(out_ptr + at, mask=inside, other=0.0)
    tl.store(out_ptr + at, out + part / (1.0 + tl.exp(-logit)), mask=inside)


def add_gated(out: Tensor, x: Tensor, gate: Tensor, part: Tensor, *, pdl: bool) -> Tensor:
    """``out += sigmoid(x @ gate.T) * part``, in place: ``out`` (float32), ``x`` and ``part`` ``[rows, width]``, ``gate
    [1, width]`` (float32)."""
    rows, width = out.shape
    assert out.is_contiguous() and out.dtype == torch.float32, "the sum is changed in place"
    _add_gated[(rows,)](
        x.contiguous(), gate, part.contiguous(), out, WIDTH=width, BLOCK=triton.next_power_of_2(width),
        **launch_options(pdl, 4),
    )  # fmt: skip
    return out
