"""Q8_0 weights as they lie (`lluda.formats.q8_0`), multiplied in torch.

Every value is exact in float32, so a product with them is defined by the product with plain float32 numbers. Here it is
computed so, a bounded number of rows at a time; the cpu backend's kernels come to the same but for the order of sums.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lluda.formats.q8_0 import BLOCK, BLOCK_BYTES, decode_blocks
from lluda.formats.stored_tensor import StoredTensor

_VALUES_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Q8Weight:
    """A matrix as blocks: uint8 ``[out_features, in_features / 32 * 34]``."""

    blocks: Tensor

    @classmethod
    def of(cls, stored: StoredTensor) -> Q8Weight:
        """The matrix ``stored``, of its own memory."""
        return cls(stored.data.view(stored.shape[0], -1))

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
        return decode_blocks(self.blocks[ids], dtype).view(len(ids), -1)

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x [rows, in] @ weight.T + bias`` in the dtype of ``x`` (float32 or float64): ``[rows, out]``."""
        out = torch.empty(len(x), self.out_features, dtype=x.dtype, device=x.device)
        start = 0
        for part in torch.split(self.blocks, max(1, _VALUES_AT_ONCE // max(1, self.in_features))):
            end = start + len(part)
            values = decode_blocks(part, x.dtype).view(len(part), -1)
            out[:, start:end] = F.linear(x, values, None if bias is None else bias[start:end])
            start = end
        return out
