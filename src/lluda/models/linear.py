"""A table of embeddings."""

from __future__ import annotations

import torch
from torch import Tensor

from lluda.backends.backend import ComputeBackend
from lluda.backends.weight import Weight


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
