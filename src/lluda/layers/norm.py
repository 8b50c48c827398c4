"""RMSNorm: a weight vector and an epsilon."""

from __future__ import annotations

from torch import Tensor

from lluda.backends.base import ComputeBackend


class RMSNorm:
    """Root-mean-square normalisation (Zhang and Sennrich 2019), no mean, no bias."""

    def __init__(self, backend: ComputeBackend, weight: Tensor, eps: float) -> None:
        self._backend = backend
        self.weight = backend.vector(weight)
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        """``[rows, width]`` in the residual dtype -> the same shape in the compute dtype."""
        return self._backend.rms_norm(x, self.weight, self.eps)
