"""The Q8_0 quantiser against the gguf package's, byte for byte, and the decoders against it."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lluda.formats.q8_0 import BLOCK, BLOCK_BYTES, Q8_0, decode_blocks

THEIRS = gguf.GGMLQuantizationType.Q8_0
RANDOM = np.random.default_rng(3)
LARGEST = 65504.0 * 127
"""The largest value whose block's scale float16 surely holds."""


def quantize(values: np.ndarray) -> np.ndarray | None:
    """Ours, with the package's shapes."""
    stored = Q8_0.encode(torch.from_numpy(values))
    return None if stored is None else stored.numpy().reshape(*values.shape[:-1], -1)


def theirs(values: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return gguf.quants.quantize(values, THEIRS)


@pytest.mark.parametrize("scale", [1.0, 1e-2, 1e-4, 1e-7, 1e-12, 1e-30, 4e-37, 1e-38, 1e-41, 1e-45, 1e3, 1e6, 7e6])
def test_random_values_of_every_size_give_the_packages_bytes(scale: float) -> None:
    values = (RANDOM.uniform(-1, 1, (33, 7 * BLOCK)) * scale).astype(np.float32)
    assert np.array_equal(quantize(values), theirs(values))


@settings(max_examples=300, deadline=None)
@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.just(BLOCK)),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-LARGEST, max_value=LARGEST),
    )
)
def test_any_finite_values_give_the_packages_bytes(values: np.ndarray) -> None:
    assert np.array_equal(quantize(values), theirs(values))


def test_halves_are_rounded_away_from_zero_as_the_package_does() -> None:
    # Scale 1: every value is its own quotient, and half of them lie on a tie.
    values = np.arange(-127, 127.5, 0.5, dtype=np.float32)
    rows = np.zeros((len(values), BLOCK), np.float32)
    rows[:, 0], rows[:, 1] = 127, values
    ours = quantize(rows)
    assert np.array_equal(ours, theirs(rows))
    signed = ours[:, 3].view(np.int8)
    assert signed[values == 0.5] == 1
    assert signed[values == -2.5] == -3
    just_below = np.nextafter(np.float32(0.5), np.float32(0))
    rows[:, 1] = just_below
    assert not quantize(rows)[:, 3].any()


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -1.0, 1e-45, LARGEST])
def test_blocks_of_one_value(value: float) -> None:
    values = np.full((2, BLOCK), value, np.float32)
    assert np.array_equal(quantize(values), theirs(values))


def test_a_block_too_small_for_a_reciprocal_is_zero() -> None:
    """Other quantisers make integers of infinities here; the scale is 0 whatever they come to."""
    values = np.full((1, BLOCK), 1e-37, np.float32)
    values[0, ::2] = 0
    assert not quantize(values).any()


def test_scales_beyond_float16_are_told() -> None:
    values = np.zeros((4, BLOCK), np.float32)
    values[3, 5] = 65520.0 * 127
    assert quantize(values) is None
    values[3, 5] = np.nextafter(np.float32(65520.0 * 127), np.float32(0)) - 1
    stored = quantize(values)
    assert stored is not None
    assert stored[3, :2].view(np.float16) == 65504


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    values = RANDOM.standard_normal((3, 2 * BLOCK)).astype(np.float32)
    values[1, 40] = value
    with pytest.raises(FloatingPointError):
        quantize(values)


def test_shapes() -> None:
    values = RANDOM.standard_normal((2, 3, 2 * BLOCK)).astype(np.float32)
    assert quantize(values).shape == (2, 3, 2 * BLOCK_BYTES)
    assert Q8_0.encode(torch.zeros(0, BLOCK)).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_decoder_gives_the_packages_values(dtype: torch.dtype) -> None:
    stored = RANDOM.integers(0, 256, (5, 4 * BLOCK_BYTES), dtype=np.uint8)
    blocks = stored.reshape(-1, BLOCK_BYTES)
    blocks[:, :2] = RANDOM.standard_normal(len(blocks)).astype(np.float16)[:, None].view(np.uint8)
    expected = torch.from_numpy(gguf.quants.dequantize(stored, THEIRS)).to(dtype)
    assert torch.equal(decode_blocks(torch.from_numpy(stored), dtype).view(5, -1), expected)
