"""Plain numbers as a format: rounding, views and copies."""

from __future__ import annotations

import pytest
import torch

from lluda.formats.plain import BF16, F16, F32, PLAIN_FORMATS, plain_tensor
from lluda.formats.stored_tensor import StoredTensor

# Half units go down to even and up to even; a carry runs through all mantissa bits into the exponent; either sign.
ROUNDED = {
    0x3F808000: 0x3F80,
    0x3F818000: 0x3F82,
    0x3F818001: 0x3F82,
    0x3F817FFF: 0x3F81,
    0x3FFFFFFF: 0x4000,
    0xBF818000: 0xBF82,
    0x00008001: 0x0001,
    0x80000000: 0x8000,
}


def signed(bits: int, width: int) -> int:
    return bits - (1 << width) if bits >> (width - 1) else bits


def test_bf16_rounds_to_nearest_even() -> None:
    values = torch.tensor([signed(bits, 32) for bits in ROUNDED], dtype=torch.int32).view(torch.float32)
    assert BF16.encode(values).view(torch.int16).tolist() == [signed(bits, 16) for bits in ROUNDED.values()]


@pytest.mark.parametrize("dtype", [one.dtype for one in PLAIN_FORMATS], ids=str)
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 3, 4)])
def test_values_come_back_from_their_own_memory(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    values = torch.ones(shape).to(dtype)
    stored = plain_tensor(values)
    back = stored.decode()
    assert (stored.format.dtype, back.dtype, back.shape) == (dtype, dtype, values.shape)
    assert stored.is_read_by(back) and stored.is_read_by(values)
    assert stored.nbytes == values.nbytes == stored.format.least_bytes(shape)
    assert not list(stored.format.violations(stored))


def test_what_begins_between_two_items_is_copied() -> None:
    values = torch.randn(5)
    memory = torch.empty(24, dtype=torch.uint8)
    shifted = memory[1:21]
    shifted.copy_(F32.encode(values))
    stored = StoredTensor(F32, (5,), shifted)
    assert torch.equal(stored.decode(), values)
    assert not stored.is_read_by(stored.decode())


def test_a_slice_of_a_tensor_is_a_copy() -> None:
    values = torch.randn(4, 6).half()
    stored = plain_tensor(values.T)
    assert stored.format is F16
    assert torch.equal(stored.decode(), values.T)
    assert not stored.is_read_by(values)


def test_bytes_that_do_not_fit_the_shape_break_a_rule() -> None:
    broken = list(F32.violations(StoredTensor(F32, (3,), torch.zeros(8, dtype=torch.uint8))))
    assert [(one.expected, one.found) for one in broken] == [(12, 8)]
