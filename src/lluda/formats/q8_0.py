"""Q8_0: blocks of 32 values of a row as a float16 scale d and 32 int8 q, value = d·q: half of BF16, with loss.

Decoding. Every d·q is exact in float32 (11 + 8 bits of significand fit 24), so the bits never depend on the machine.
That also defines odd blocks: a subnormal or negative scale and q = -128 multiply like any other, a NaN scale gives 32
NaN, an infinite one ±infinity and, where q = 0, NaN.

Encoding is ggml's reference quantiser, so the bytes are those of the ``gguf`` package and of llama.cpp: in float32
d = largest |x| / 127, q = x · (1/d) rounded to the nearest, halves away from zero; d is stored as float16 but the q are
made with the float32 one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lluda.formats.format import BlockFormat
from lluda.formats.stored_tensor import StoredTensor

if TYPE_CHECKING:
    import torch

BLOCK = 32
"""Values of a block; a row is a whole number of blocks."""

BLOCK_BYTES = 34
"""Bytes of a block: the scale, little-endian, then the q."""

_LARGEST_SCALE = 65520.0  # from here on float16 rounds to infinity


class Q8Format(BlockFormat):
    """The format Q8_0; `decode_blocks` for a part of a tensor or another dtype."""

    def __init__(self) -> None:
        super().__init__("Q8_0", BLOCK, BLOCK_BYTES)

    def decode(self, stored: StoredTensor) -> torch.Tensor:
        """Float32."""
        import torch

        return decode_blocks(stored.data, torch.float32).view(stored.shape)

    def encode(self, values: torch.Tensor) -> torch.Tensor | None:
        """``values [..., columns]``, columns a multiple of 32. None: a scale is beyond float16's 65504.

        A block whose 1/d is beyond float32 (largest |x| below about 3.7e-37, where other quantisers convert infinities
        to integers) gets q = 0; its scale is 0 in float16 in any case.
        """
        import torch

        blocks = values.float().reshape(-1, BLOCK)
        largest = blocks.abs().amax(1, keepdim=True)
        # Tensors of one number: by a Python number torch would multiply with its reciprocal, and round twice.
        scales = largest / torch.full_like(largest, 127)
        if not bool(scales.isfinite().all()):
            raise FloatingPointError("NaN or infinity")
        if len(scales) and float(scales.max()) >= _LARGEST_SCALE:
            return None
        factors = torch.ones_like(scales) / scales
        factors[factors.isinf()] = 0
        stored = torch.empty(len(blocks), BLOCK_BYTES, dtype=torch.uint8, device=values.device)
        stored[:, :2] = scales.half().view(torch.uint8)
        stored[:, 2:].view(torch.int8)[...] = _rounded(blocks * factors)
        return stored.view(-1)

    def surely_finite(self, stored: StoredTensor) -> bool:
        """Finite scales make finite values."""
        import torch

        scales = stored.data.view(-1, BLOCK_BYTES)[:, :2].contiguous().view(torch.float16)
        return bool(scales.isfinite().all())


Q8_0 = Q8Format()


def decode_blocks(blocks: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Blocks (uint8, any number of them) as values ``[blocks * 32]``, exact in float32 and float64."""
    import torch

    split = blocks.reshape(-1, BLOCK_BYTES)
    scales = split[:, :2].contiguous().view(torch.float16).to(dtype)
    values = torch.empty(len(split), BLOCK, dtype=dtype, device=blocks.device)
    torch.mul(split[:, 2:].view(torch.int8), scales, out=values)
    return values.view(-1)


def round_rows(x: torch.Tensor) -> torch.Tensor:
    """Rows ``[rows, columns]`` (float32 or float64) rounded to Q8_0, as llama.cpp's CPU kernels do with the rows that
    they multiply with Q8_0 weights: the products of a block are then sums of integers. Halves go to even, and q is made
    with 127 / largest |x|; d is rounded to float16, and where that is zero, so is the block."""
    import torch

    blocks = x.reshape(len(x), -1, BLOCK)
    largest = blocks.abs().amax(-1, keepdim=True)
    scales = (largest / 127).to(torch.float16).to(x.dtype)
    # A tensor's division: of a number, torch would multiply it with the reciprocal and round twice.
    factors = torch.where(scales > 0, torch.full_like(largest, 127) / largest, 0)
    return (blocks * factors).round_().mul_(scales).view(x.shape)


def _rounded(values: torch.Tensor) -> torch.Tensor:
    """To the nearest integer, halves away from zero, in place; every step is exact."""
    whole = values.trunc()
    return values.sub_(whole).mul_(2).trunc_().add_(whole)
