"""Rotary position embedding: from positions to the cosines and sines attention rotates with."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lluda.backends.components import Rotary


def rotary_frequencies(head_dim: int, theta: float) -> Tensor:
    """``head_dim / 2`` frequencies ``theta^(-2i / head_dim)`` in radians a position (Su et al. 2021), float32.

    They are computed in float32 exactly as in training, since at long positions the rounding of a frequency shows.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    return 1.0 / theta**exponents


def yarn_frequencies(
    head_dim: int, theta: float, factor: float, trained: int, beta_fast: float, beta_slow: float, truncate: bool
) -> Tensor:
    """`rotary_frequencies` for ``factor`` times the ``trained`` positions: YaRN (Peng et al. 2023, section 3.2).

    A frequency that turns more than ``beta_fast`` times over the trained positions stays, one that turns less than
    ``beta_slow`` times is divided by ``factor``, and between these two bounds, whole indices if ``truncate``, the
    weight of the two falls linearly. As transformers computes it, operation by operation.
    """
    powers = theta ** (torch.arange(0, head_dim, 2).float() / head_dim)
    plain, stretched = 1.0 / powers, 1.0 / (factor * powers)
    first, last = (_index_turning(turns, head_dim, theta, trained) for turns in (beta_fast, beta_slow))
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    width = last - first or 0.001
    unscaled = 1 - ((torch.arange(head_dim // 2, dtype=torch.float32) - first) / width).clamp(0, 1)
    return stretched * (1 - unscaled) + plain * unscaled


def _index_turning(turns: float, head_dim: int, theta: float, positions: int) -> float:
    """The (fractional) index of the frequency that makes ``turns`` whole turns over ``positions``."""
    return head_dim * math.log(positions / (turns * 2 * math.pi)) / (2 * math.log(theta))


def rotary(
    frequencies: Tensor, device: torch.device, mrope_section: Sequence[int] | None = None, scale: float = 1.0
) -> Rotary:
    """The rotation of positions times ``frequencies``, on ``device``; cosines and sines are multiplied by ``scale``.

    ``mrope_section`` gives the number of frequencies that turn with time, height and width where positions have three
    rows (spec section 5.1): in turn, as THWTHW…, with what is left over going to time.
    """
    axes = torch.tensor(_axes(len(frequencies), mrope_section or (0, 0, 0)), device=device)
    return Rotary(frequencies.to(device), axes, scale)


def _axes(frequencies: int, section: Sequence[int]) -> list[int]:
    """For each frequency the row of the positions it turns with: 0 time, 1 height, 2 width."""
    axes = [0] * frequencies
    for axis in (1, 2):
        for index in range(axis, 3 * section[axis], 3):
            axes[index] = axis
    return axes
