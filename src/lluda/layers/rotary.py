"""Rotary position embedding: from positions to the cosines and sines attention rotates with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lluda.backends.base import ComputeBackend, RotaryTable


class Rotary:
    """``head_dim / 2`` frequencies ``theta^(-2i / head_dim)`` (Su et al. 2021).

    They are computed in float32 exactly as in training, since at long positions the rounding of a frequency shows.
    ``mrope_section`` gives the number of frequencies that turn with time, height and width where positions have three
    rows (spec section 5.1): interleaved as THWTHW… with what is left over going to time, or in three runs.
    """

    def __init__(
        self,
        backend: ComputeBackend,
        head_dim: int,
        theta: float,
        mrope_section: Sequence[int] | None = None,
        interleaved: bool = False,
    ) -> None:
        self._backend = backend
        exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
        self.inverse_frequencies = (1.0 / theta**exponents).to(backend.device)
        axes = _axes(head_dim // 2, mrope_section or (), interleaved)
        self._axes = torch.tensor(axes, device=backend.device)

    def __call__(self, positions: Tensor) -> RotaryTable:
        """Positions ``[rows]``, or ``[3, rows]`` (time, height, width), whole or fractional -> cosines and sines, each
        ``[rows, head_dim / 2]``. Computed once a step."""
        chosen = positions[:, None] if positions.dim() == 1 else positions[self._axes].T
        return self._backend.rotary_table(chosen, self.inverse_frequencies)


def _axes(frequencies: int, section: Sequence[int], interleaved: bool) -> list[int]:
    """For each frequency the row of the positions it turns with: 0 time, 1 height, 2 width."""
    if not interleaved:
        runs = [axis for axis, count in enumerate(section) for _ in range(count)]
        return runs or [0] * frequencies
    axes = [0] * frequencies
    for axis in (1, 2):
        for index in range(axis, 3 * section[axis], 3):
            axes[index] = axis
    return axes
