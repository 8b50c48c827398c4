from __future__ import annotations

import ctypes

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lluda.backends.cpu.native_library import NativeContext
from lluda.backends.cpu.packing import pack_matrix
from lluda.backends.cpu.weight_memory import WeightMemory
from lluda.errors import NativeLibraryError
from lluda.formats.packed_bf16 import PACKED_BF16, decoded_rows
from lluda.formats.stored_tensor import StoredTensor
from lluda.weights.safetensors.file import SafetensorsFile
from tests.formats.packed_by_hand import pack_by_hand, same_bits, write_packed


def opened(data: torch.Tensor, shape: tuple[int, ...]) -> StoredTensor:
    stored = StoredTensor(PACKED_BF16, shape, data)
    assert not list(PACKED_BF16.violations(stored))
    return stored


def gaussian(rows: int, columns: int) -> torch.Tensor:
    return (torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows)) * 0.02).bfloat16()


@st.composite
def any_bits(draw) -> torch.Tensor:
    """Matrices of few exponents with anything strewn in: NaN, infinities, denormals, signed zeros."""
    rows, columns = draw(st.integers(1, 4)), draw(st.sampled_from([1, 7, 63, 127, 128, 129, 200, 256]))
    values = gaussian(rows, columns).view(torch.int16)
    strewn = st.tuples(st.integers(0, rows - 1), st.integers(0, columns - 1), st.integers(-(2**15), 2**15 - 1))
    for row, column, bits in draw(st.lists(strewn, max_size=40)):
        values[row, column] = bits
    return values.view(torch.bfloat16)


@settings(max_examples=60, deadline=None)
@given(any_bits())
def test_packing_is_as_worded(values):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lluda.formats.packed_bf16._WORTHWHILE", float("inf"))
        patch.setattr("lluda.formats.packed_bf16._CHUNK_WEIGHTS", 300)
        stored = PACKED_BF16.encode(values)
    assert stored is not None and bytes(stored.tolist()) == bytes(pack_by_hand(values))


def test_random_bits_are_not_worth_packing():
    bits = torch.randint(-(2**15), 2**15, (64, 256), dtype=torch.int16, generator=torch.Generator().manual_seed(0))
    assert PACKED_BF16.encode(bits.view(torch.bfloat16)) is None
    assert PACKED_BF16.encode(gaussian(64, 256)) is not None


@settings(max_examples=60, deadline=None)
@given(any_bits())
def test_unpacking_gives_the_same_bits(values):
    stored = torch.frombuffer(pack_by_hand(values), dtype=torch.uint8)
    assert same_bits(opened(stored, tuple(values.shape)).decode(), values)


@pytest.mark.parametrize("bits", [0x0000, 0x8000, 0x0001, 0x7F80, 0xFF80, 0x7FC1, 0x3F80])
def test_matrices_of_one_value(bits):
    values = torch.full((3, 130), bits, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    stored = torch.frombuffer(pack_by_hand(values), dtype=torch.uint8)
    assert same_bits(opened(stored, (3, 130)).decode(), values)


def test_decoded_rows_are_the_matrix_in_order(monkeypatch):
    monkeypatch.setattr("lluda.formats.packed_bf16._CHUNK_WEIGHTS", 300)
    values = gaussian(7, 100)
    groups = list(decoded_rows(opened(torch.frombuffer(pack_by_hand(values), dtype=torch.uint8), (7, 100))))
    assert [(begin, len(rows)) for begin, rows in groups] == [(0, 3), (3, 3), (6, 1)]
    assert same_bits(torch.cat([rows for _, rows in groups]), values)


@pytest.mark.parametrize(("bits", "expected"), [(0x3C00, True), (0x7F80, False), (0x7FC0, False), (0x0001, True)])
def test_exponents_tell_whether_all_is_finite(bits, expected):
    values = gaussian(4, 256)
    values.view(torch.int16)[2, 9] = bits
    stored = torch.frombuffer(pack_by_hand(values), dtype=torch.uint8)
    assert opened(stored, (4, 256)).surely_finite() == expected
    everywhere = torch.full((2, 128), bits, dtype=torch.int16).view(torch.bfloat16)
    stored = torch.frombuffer(pack_by_hand(everywhere), dtype=torch.uint8)
    assert opened(stored, (2, 128)).surely_finite() == expected


def test_a_packed_tensor_is_listed_by_its_shape_and_read_as_values(tmp_path):
    values, norm = gaussian(5, 300), torch.ones(3).bfloat16()
    stored = pack_by_hand(values)
    path = write_packed(tmp_path / "x.safetensors", {"w": stored}, {"w": [5, 300]}, {"norm": norm})
    with SafetensorsFile(path) as file:
        entry = file.entries["w"]
        assert (entry.shape, entry.dtype, entry.nbytes) == ((5, 300), "PACKED_BF16", len(stored))
        assert same_bits(file.tensor("w"), values)
        packed = file.stored("w")
        assert packed.format is PACKED_BF16 and bytes(packed.data.tolist()) == bytes(stored)
        assert packed.data.data_ptr() % 64 == 0
        assert same_bits(file.tensor("norm"), norm)


@pytest.mark.parametrize(("rows", "columns"), [(16, 128), (64, 1024), (70, 1000), (200, 253)])
def test_the_native_packer_and_unpacker_agree(rows, columns):
    try:
        native = NativeContext()
    except NativeLibraryError as error:
        pytest.skip(f"the native library is not built: {error}")
    values = gaussian(rows, columns)
    values.view(torch.int16)[0, :5] = torch.tensor([1, -32768, 0x7F80, 0x7FC1, 0])
    values.view(torch.int16)[-1, -1] = 0x0003
    stored = pack_matrix(values, WeightMemory(), native)
    if stored is None:
        pytest.fail("the matrix does not compress")
    assert bytes(stored.tolist()) == bytes(pack_by_hand(values))
    unpacked = torch.empty_like(values)
    native.check(native.unpack(ctypes.byref(native.library.packed_view(stored)), unpacked.data_ptr()))
    assert same_bits(unpacked, values)
    assert same_bits(opened(stored, (rows, columns)).decode(), values)
