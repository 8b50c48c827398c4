"""Q8_0 weights as they lie: blocks of 32 values of a row, a float16 scale d and 32 int8 q, value = d·q.

Every value is exact in float32 (11 + 8 bits of significand fit 24), so a product with them is defined by the product
with plain float32 numbers. Here it is computed so, a bounded number of rows at a time; the cpu backend's kernels come
to the same but for the order of sums.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK, BLOCK_BYTES = 32, 34

_VALUES_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Q8Weight:
    """A matrix as blocks: uint8 ``[out_features, in_features / 32 * 34]``."""

    blocks: Tensor

    @property
    def format(self) -> str:
        """Storage format."""
        return "Q8_0"

    @property
    def out_features(self) -> int:
        """Rows: width of the product."""
        return self.blocks.shape[0]

    @property
    def in_features(self) -> int:
        """Columns: width of the rows it multiplies."""
        return self.blocks.shape[1] // BLOCK_BYTES * BLOCK

    @property
    def nbytes(self) -> int:
        """Bytes that one product reads."""
        return self.blocks.nbytes

    def rows(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """The values of rows ``ids`` (int64 ``[n]``): ``[n, in_features]``, exact in float32 and float64."""
        return decode(self.blocks[ids], dtype)

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x [rows, in] @ weight.T + bias`` in the dtype of ``x`` (float32 or float64): ``[rows, out]``."""
        out = torch.empty(len(x), self.out_features, dtype=x.dtype, device=x.device)
        start = 0
        for part in torch.split(self.blocks, max(1, _VALUES_AT_ONCE // max(1, self.in_features))):
            end = start + len(part)
            out[:, start:end] = F.linear(x, decode(part, x.dtype), None if bias is None else bias[start:end])
            start = end
        return out


def rounded(x: Tensor) -> Tensor:
    """Rows ``[rows, columns]`` (float32 or float64) rounded to Q8_0, as llama.cpp's CPU kernels do with the rows that
    they multiply with Q8_0 weights: the products of a block are then sums of integers. Halves go to even, and q is made
    with 127 / largest |x|; d is rounded to float16, and where that is zero, so is the block."""
    blocks = x.reshape(len(x), -1, BLOCK)
    largest = blocks.abs().amax(-1, keepdim=True)
    scales = (largest / 127).to(torch.float16).to(x.dtype)
    # A tensor's division: of a number, torch would multiply it with the reciprocal and round twice.
    factors = torch.where(scales > 0, torch.full_like(largest, 127) / largest, 0)
    return (blocks * factors).round_().mul_(scales).view(x.shape)


def decode(blocks: Tensor, dtype: torch.dtype) -> Tensor:
    """Blocks uint8 ``[rows, columns / 32 * 34]`` as values ``[rows, columns]``."""
    split = blocks.view(len(blocks), -1, BLOCK_BYTES)
    scales = split[..., :2].contiguous().view(torch.float16).to(dtype)
    values = torch.empty((*split.shape[:2], BLOCK), dtype=dtype, device=blocks.device)
    torch.mul(split[..., 2:].view(torch.int8), scales, out=values)
    return values.flatten(1)
