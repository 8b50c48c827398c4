"""A table of embeddings."""

from __future__ import annotations

import torch
from torch import Tensor

from lluda.backends.backend import ComputeBackend
from lluda.backends.group import Group
from lluda.backends.weight import Weight


class Embedding:
    """A table of rows, looked up by id. Where a ``group`` shares it, ``weight`` has this rank's part of the rows, and
    all ranks look up the same ids."""

    def __init__(self, backend: ComputeBackend, weight: Weight, group: Group | None = None) -> None:
        self._backend = backend
        self._group = group
        self.weight = weight

    @property
    def device(self) -> torch.device:
        """Where its ids and rows are."""
        return self._backend.device

    def __call__(self, ids: Tensor) -> Tensor:
        """int64 ``[rows] -> [rows, width]`` in the residual dtype."""
        if self._group is None:
            return self._backend.embedding(self.weight, ids)
        count = self.weight.out_features
        here = ids - self._group.rank * count
        rows = self._backend.embedding(self.weight, here.clamp(0, count - 1))
        elsewhere = (here < 0) | (here >= count)
        return self._group.sum(rows.masked_fill(elsewhere[:, None], 0))
