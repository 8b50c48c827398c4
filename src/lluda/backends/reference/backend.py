"""The reference backend: plain torch on any device, the definition of correct that every other backend is tested by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lluda.backends.backend import Precision
from lluda.backends.executor.executor import TorchExecutor
from lluda.backends.executor.q8_weight import Q8Weight
from lluda.backends.reference.capabilities import CAPABILITIES
from lluda.backends.weight import DenseWeight, Weight
from lluda.formats.plain import plain_format
from lluda.formats.q8_0 import Q8_0
from lluda.formats.stored_tensor import StoredTensor

_BLOCKED_ROWS = 1
"""Rows of a product for which oneDNN is asked to choose its blocks: decoding's."""


@dataclass(frozen=True, slots=True, eq=False)
class BlockedWeight(DenseWeight):
    """A matrix that is also held in the order of blocks in which oneDNN's BF16 product reads it fastest.

    ``values`` are for looking up rows; products read ``blocked`` alone."""

    blocked: Tensor


class ReferenceBackend(TorchExecutor):
    """Every component in torch operations. ``blocked`` (BF16 on a CPU, see :func:`can_block`) trades a copy of the
    matrices for products of few rows that read them about 1.4 times as fast (journal/06-generation.md). ``q8_0_rows``
    rounds the rows that Q8_0 weights are multiplied with to Q8_0 too, as llama.cpp does."""

    name = "reference"
    CAPABILITIES = CAPABILITIES

    def __init__(
        self,
        device: torch.device,
        precision: Precision,
        *,
        blocked: bool = False,
        q8_0_rows: bool = False,
        remark: str = "",
    ) -> None:
        super().__init__(device, precision, q8_0_rows=q8_0_rows)
        self._blocked = blocked
        self._remark = remark

    def _description(self) -> str:
        """Also says why no faster backend was chosen, where one was wanted."""
        blocked = ", weights in oneDNN blocks" if self._blocked else ""
        blocked += ", rows rounded to Q8_0 for Q8_0 weights" if self._q8_0_rows else ""
        return super()._description() + blocked + (f" ({self._remark})" if self._remark else "")

    def _take_values(self, values: Tensor) -> tuple[Weight, bool]:
        """Zero-copy where the tensor is already in the compute dtype and on the device, unless it is put in blocks."""
        taken = values.to(self.device, self.precision.compute)
        if not self._blocked:
            return DenseWeight(taken, plain_format(taken.dtype).name), taken is values
        blocked = torch.ops.mkldnn._reorder_linear_weight(taken, _BLOCKED_ROWS)
        # The stored bytes may be let go of: a lookup of a few rows brings back their pages alone.
        return BlockedWeight(taken, "BF16", blocked), False

    def _take_as_stored(self, stored: StoredTensor) -> tuple[Weight, bool] | None:
        """Q8_0 in a BF16 run, and where rows are to be rounded too: else the plain values are as exact, and faster."""
        if stored.format is not Q8_0 or not (self.precision.compute is torch.bfloat16 or self._q8_0_rows):
            return None
        weight = Q8Weight.of(stored.to(self.device))
        return weight, stored.is_read_by(weight.blocks)

    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
        if not isinstance(weight, BlockedWeight):
            return super().linear(x, weight, bias)
        bias = None if bias is None else bias.to(x.dtype)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight.blocked, bias, "none", [], "")
        return product


def can_block(device: torch.device, precision: Precision) -> bool:
    """Whether torch has the BF16 product over oneDNN blocks here."""
    if device.type != "cpu" or precision.compute is not torch.bfloat16:
        return False
    operations = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    built = all(hasattr(torch.ops.mkldnn, name) for name in operations)
    return built and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
