"""Rotary position embedding: from positions to the cosines and sines attention rotates with."""

from __future__ import annotations

import torch
from torch import Tensor

from lluda.backends.base import ComputeBackend, RotaryTable


class Rotary:
    """``head_dim / 2`` frequencies ``theta^(-2i / head_dim)`` (Su et al. 2021).

    They are computed in float32 exactly as in training, since at long positions the rounding of a frequency shows.
    """

    def __init__(self, backend: ComputeBackend, head_dim: int, theta: float) -> None:
        self._backend = backend
        exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
        self.inverse_frequencies = (1.0 / theta**exponents).to(backend.device)

    def __call__(self, positions: Tensor) -> RotaryTable:
        """Positions ``[rows]`` -> cosines and sines, each ``[rows, head_dim / 2]``. Computed once a step."""
        return self._backend.rotary_table(positions, self.inverse_frequencies)
