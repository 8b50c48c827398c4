"""Linear layers: a weight in whatever format it has, an optional bias."""

from __future__ import annotations

import torch
from torch import Tensor

from lluda.backends.backend import ComputeBackend
from lluda.backends.blocks import Projection, Weight


class Linear:
    """``x @ weight.T + bias``. The format is the weight's own affair; the backend has a kernel for each."""

    def __init__(self, backend: ComputeBackend, projection: Projection) -> None:
        self._backend = backend
        self.projection = projection

    def __call__(self, x: Tensor) -> Tensor:
        """``[rows, in_features] -> [rows, out_features]`` in the compute dtype."""
        return self._backend.linear(x, self.projection.weight, self.projection.bias)


class Embedding:
    """A table of rows, looked up by id."""

    def __init__(self, backend: ComputeBackend, weight: Weight) -> None:
        self._backend = backend
        self.weight = weight

    @property
    def device(self) -> torch.device:
        """Where its ids and rows are."""
        return self._backend.device

    def __call__(self, ids: Tensor) -> Tensor:
        """int64 ``[rows] -> [rows, width]`` in the residual dtype."""
        return self._backend.embedding(self.weight, ids)
