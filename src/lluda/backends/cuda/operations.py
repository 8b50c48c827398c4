"""The executor's operations on a GPU: products, norms, rotations and activations of rows as Triton kernels.

Products of up to `triton_gemv.MAX_ROWS` rows read each weight into registers, of up to `triton_products.MAX_ROWS` go
through the matrix units' kernels, of more through torch's.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lluda.backends.backend import Precision
from lluda.backends.blocks import AttentionBlock, Norm, Projection
from lluda.backends.components import Rotary
from lluda.backends.cuda.coded_weight import CodedWeight
from lluda.backends.cuda.kernels import (
    triton_formats,
    triton_gemv,
    triton_grouped,
    triton_mixture,
    triton_products,
    triton_rows,
)
from lluda.backends.cuda.kernels.triton_target import has_dependent_launch
from lluda.backends.executor.executor import TorchExecutor
from lluda.backends.executor.operations import RotaryTable
from lluda.backends.weight import DenseWeight, Weight

KERNEL_TYPES = (torch.bfloat16, torch.float32)
"""That kernels compute in, and that caches hold for them; others are torch's."""


class CudaOperations(TorchExecutor):
    """`TorchOperations` where there is a kernel. ``_fused``: whether there are kernels for this precision; ``_pdl``:
    whether they may start before the kernel in front of them has ended."""

    def __init__(self, device: torch.device, precision: Precision) -> None:
        super().__init__(device, precision)
        self._fused = precision.compute in KERNEL_TYPES
        self._pdl = has_dependent_launch(device)
        self._sums = triton_products.SplitScratch(device)
        self._biases: dict[int, tuple[Tensor, Tensor]] = {}

    def embedding(self, weight: Weight, ids: Tensor) -> Tensor:
        """See `ComputeBackend.embedding`."""
        if isinstance(weight, CodedWeight):
            return triton_formats.decoded(weight, self.precision.residual, ids, pdl=self._pdl)
        if not self._takes(weight):
            return super().embedding(weight, ids)
        return triton_rows.lookup(triton_formats.values_of(weight), ids, pdl=self._pdl)

    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
        """See `TorchOperations.linear`."""
        several = self._several(x, weight)
        if not several and not (self._few(x) and self._takes(weight)):
            return super().linear(x, self._plain(weight), self._rounded(bias))
        out = torch.empty(len(x), weight.out_features, dtype=self.precision.compute, device=x.device)
        if several:
            x = x.to(out.dtype).contiguous()
            return triton_products.project(x, [weight], self._sums, pdl=self._pdl, out=out, bias=bias)
        return triton_gemv.project(x.contiguous(), None, [weight], pdl=self._pdl, out=out, bias=bias)

    def rms_norm(self, x: Tensor, norm: Norm) -> Tensor:
        """See `TorchOperations.rms_norm`."""
        if not self._fused:
            return super().rms_norm(x, norm)
        return triton_rows.rms_norm(x.contiguous(), norm.weight, norm.eps, self.precision.compute, pdl=self._pdl)

    def final_norm(self, x: Tensor, norm: Norm) -> Tensor:
        """See `ComputeBackend.final_norm`."""
        return self.rms_norm(x, norm) if self._fused else super().final_norm(x, norm)

    def rotary_table(self, positions: Tensor, rotary: Rotary) -> RotaryTable:
        """See `TorchOperations.rotary_table`."""
        if not self._fused:
            return super().rotary_table(positions, rotary)
        return triton_rows.angles(rotary.chosen(positions), rotary.frequencies, rotary.scale, pdl=self._pdl)

    def rotate(self, x: Tensor, table: RotaryTable, norm: Norm | None) -> Tensor:
        """See `TorchOperations.rotate`."""
        if not self._fused:
            return super().rotate(x, table, norm)
        weight = (norm.weight, norm.eps) if norm else None
        return triton_rows.rotate(x, weight, table, self.precision.compute, pdl=self._pdl)

    def gated_silu(self, gate: Tensor, up: Tensor) -> Tensor:
        """See `TorchOperations.gated_silu`."""
        if not self._fused:
            return super().gated_silu(gate, up)
        return triton_rows.gated_silu(gate.contiguous(), up.contiguous(), self.precision.compute, pdl=self._pdl)

    def route(self, x: Tensor, router: Tensor, top_k: int, *, normalise: bool) -> tuple[Tensor, Tensor]:
        """See `TorchOperations.route`."""
        if not self._fused or len(router) > triton_mixture.MAX_EXPERTS:
            return super().route(x, router, top_k, normalise=normalise)
        weight = DenseWeight(router, "F32")
        if self._several(x, weight) and x.dtype == self.precision.compute:
            logits = triton_products.project(x.contiguous(), [weight], self._sums, pdl=self._pdl)
        else:
            logits = F.linear(x.to(router.dtype), router)
        return triton_grouped.route(logits, top_k, normalise=normalise, pdl=self._pdl)

    def snake_beta(self, x: Tensor, frequency: Tensor, amplitude: Tensor) -> Tensor:
        """See `TorchOperations.snake_beta`."""
        if not self._fused:
            return super().snake_beta(x, frequency, amplitude)
        return triton_rows.snake(x.contiguous(), frequency, amplitude, self.precision.compute, pdl=self._pdl)

    def head(self, x: Tensor, norm: Norm, weight: Weight) -> Tensor:
        """See `ComputeBackend.head`."""
        if self._several(x, weight):
            return triton_products.project(self.rms_norm(x, norm), [weight], self._sums, pdl=self._pdl)
        if not (self._few(x) and self._takes(weight)):
            return super().head(x, norm, weight)
        return triton_gemv.project(x.contiguous(), (norm.weight, norm.eps), [weight], pdl=self._pdl)

    def _rounded(self, bias: Tensor | None) -> Tensor | None:
        """A parameter as the library's products take it, made once: rounding is a launch beside each of theirs."""
        if bias is None or bias.dtype == self.precision.compute:
            return bias
        if id(bias) not in self._biases:
            self._biases[id(bias)] = bias, bias.to(self.precision.compute)
        return self._biases[id(bias)][1]

    def _several(self, x: Tensor, *weights: Weight) -> bool:
        """Whether products of these rows are those of the matrix units' kernels: of plain weights alone."""
        some = self._fused and triton_gemv.MAX_ROWS < len(x) <= triton_products.MAX_ROWS
        return some and all(isinstance(weight, DenseWeight) for weight in weights)

    def _few(self, x: Tensor) -> bool:
        return self._fused and len(x) <= triton_gemv.MAX_ROWS

    def _takes(self, *weights: Weight) -> bool:
        """Whether kernels multiply with these together: all of one form."""
        known = all(isinstance(weight, DenseWeight | CodedWeight) for weight in weights)
        return self._fused and known and len({weight.format for weight in weights}) == 1

    def _plain(self, weight: Weight) -> Weight:
        """For products of many rows, which are no faster for fewer bytes of weights. Q8_0 ones are rounded to BF16."""
        if not isinstance(weight, CodedWeight):
            return weight
        return DenseWeight(triton_formats.decoded(weight, self.precision.compute, pdl=self._pdl), "BF16")

    def _qkv(self, x: Tensor, block: AttentionBlock) -> Tensor:
        """Queries, keys and values side by side, float32."""
        parts, x = (block.q_proj, block.k_proj, block.v_proj), x.contiguous()
        weights = [part.weight for part in parts]
        if self._several(x, *weights) and block.q_proj.bias is None:
            return triton_products.project(self.rms_norm(x, block.norm), weights, self._sums, pdl=self._pdl)
        if self._few(x) and self._takes(*weights) and block.q_proj.bias is None:
            norm = block.norm.weight, block.norm.eps
            return triton_gemv.project(x, norm, weights, pdl=self._pdl)
        normed = self.rms_norm(x, block.norm)
        return torch.cat([self.project(normed, part) for part in parts], dim=1).float()

    def _add(self, x: Tensor, rows: Tensor, projection: Projection, scale: Tensor | None) -> Tensor:
        """``x + scale * projection(rows)``, in place where one kernel does it."""
        if self._several(x, projection.weight) and projection.bias is None:
            x, rows = x.contiguous(), rows.contiguous()
            return triton_products.add(rows, projection.weight, x, scale, self._sums, pdl=self._pdl)
        if self._few(x) and self._takes(projection.weight) and projection.bias is None:
            return triton_gemv.add(rows, projection.weight, x.contiguous(), scale, pdl=self._pdl)
        branch = self.project(rows, projection)
        return x + (branch if scale is None else branch * scale)
