"""Q8_0: blocks of 32 values of a row as a float16 scale d and 32 int8 q, value = d·q: half of BF16, with loss.

The arithmetic is ggml's reference quantiser, so the bytes are those of the ``gguf`` package and of llama.cpp: in
float32 d = largest |x| / 127, q = x · (1/d) rounded to the nearest, halves away from zero; d is stored as float16 but
the q are made with the float32 one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK = 32
"""Values of a block; a row is a whole number of blocks."""

BLOCK_BYTES = 34
"""Bytes of a block: the scale, little-endian, then the q."""

_LARGEST_SCALE = 65520.0  # from here on float16 rounds to infinity


def quantize(values: NDArray[np.float32]) -> NDArray[np.uint8] | None:
    """Float32 ``[..., columns]``, columns a multiple of 32 -> uint8 ``[..., columns / 32 * 34]``. None: a scale is
    beyond float16's 65504, so that the format cannot hold the values.

    A block whose 1/d is beyond float32 (largest |x| below about 3.7e-37, where other quantisers convert infinities to
    integers) gets q = 0; its scale is 0 in float16 in any case.

    FloatingPointError: NaN or infinity among the values.
    """
    blocks = values.reshape(-1, BLOCK)
    with np.errstate(divide="ignore", over="ignore", under="ignore"):
        scales = np.abs(np.maximum(blocks.max(axis=1), -blocks.min(axis=1))) / np.float32(127)  # never -0
        if not np.isfinite(scales).all():
            raise FloatingPointError("NaN or infinity")
        if scales.size and scales.max() >= _LARGEST_SCALE:
            return None
        factors = np.float32(1) / scales
        factors[np.isinf(factors)] = 0
        scaled = blocks * factors[:, None]
        stored = np.empty((len(blocks), BLOCK_BYTES), dtype=np.uint8)
        stored[:, :2] = scales.astype("<f2").view(np.uint8).reshape(-1, 2)
        stored[:, 2:].view(np.int8)[...] = _rounded(scaled)
    return stored.reshape(*values.shape[:-1], values.shape[-1] // BLOCK * BLOCK_BYTES)


def _rounded(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """To the nearest integer, halves away from zero, in place; every step is exact."""
    whole = np.trunc(values)
    values -= whole
    values += values
    np.trunc(values, out=values)
    values += whole
    return values
