"""Normalisation layers."""

from __future__ import annotations

from torch import Tensor

from lluda.backends.base import ComputeBackend
from lluda.backends.blocks import Norm


class RMSNorm:
    """Root-mean-square normalisation (Zhang and Sennrich 2019): no mean, no bias."""

    def __init__(self, backend: ComputeBackend, norm: Norm) -> None:
        self._backend = backend
        self.norm = norm

    def __call__(self, x: Tensor) -> Tensor:
        """``[rows, width]`` in the residual dtype -> the same shape in the compute dtype."""
        return self._backend.rms_norm(x, self.norm)
