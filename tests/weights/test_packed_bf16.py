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
from lluda.weights.entry import TensorEntry
from lluda.weights.packed_bf16 import DTYPE, PackedMatrix, packed_matrix
from lluda.weights.safetensors import SafetensorsFile
from tests.weights.packed_by_hand import pack_by_hand, same_bits, write_packed


def opened(stored: torch.Tensor, shape: tuple[int, ...], path) -> PackedMatrix:
    return packed_matrix(stored, TensorEntry("w", shape, DTYPE, stored.numel(), path, 0))


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
def test_unpacking_gives_the_same_bits(tmp_path_factory, values):
    stored = torch.frombuffer(pack_by_hand(values), dtype=torch.uint8)
    assert same_bits(opened(stored, tuple(values.shape), tmp_path_factory.getbasetemp()).unpacked(), values)


@pytest.mark.parametrize("bits", [0x0000, 0x8000, 0x0001, 0x7F80, 0xFF80, 0x7FC1, 0x3F80])
def test_matrices_of_one_value(tmp_path, bits):
    values = torch.full((3, 130), bits, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    stored = torch.frombuffer(pack_by_hand(values), dtype=torch.uint8)
    assert same_bits(opened(stored, (3, 130), tmp_path).unpacked(), values)


def test_row_groups_are_the_matrix_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr("lluda.weights.packed_bf16._CHUNK_WEIGHTS", 300)
    values = gaussian(7, 100)
    groups = list(opened(torch.frombuffer(pack_by_hand(values), dtype=torch.uint8), (7, 100), tmp_path).row_groups())
    assert [(begin, len(rows)) for begin, rows in groups] == [(0, 3), (3, 3), (6, 1)]
    assert same_bits(torch.cat([rows for _, rows in groups]), values)


@pytest.mark.parametrize(("bits", "expected"), [(0x3C00, False), (0x7F80, True), (0x7FC0, True), (0x0001, False)])
def test_exponents_tell_whether_anything_is_not_finite(tmp_path, bits, expected):
    values = gaussian(4, 256)
    values.view(torch.int16)[2, 9] = bits
    assert (
        opened(torch.frombuffer(pack_by_hand(values), dtype=torch.uint8), (4, 256), tmp_path).may_hold_non_finite()
        == expected
    )
    everywhere = torch.full((2, 128), bits, dtype=torch.int16).view(torch.bfloat16)
    stored = torch.frombuffer(pack_by_hand(everywhere), dtype=torch.uint8)
    assert opened(stored, (2, 128), tmp_path).may_hold_non_finite() == expected


def test_a_packed_tensor_is_listed_by_its_shape_and_read_as_values(tmp_path):
    values, norm = gaussian(5, 300), torch.ones(3).bfloat16()
    stored = pack_by_hand(values)
    path = write_packed(tmp_path / "x.safetensors", {"w": stored}, {"w": [5, 300]}, {"norm": norm})
    with SafetensorsFile(path) as file:
        entry = file.entries["w"]
        assert (entry.shape, entry.dtype, entry.nbytes) == ((5, 300), DTYPE, len(stored))
        assert same_bits(file.tensor("w"), values)
        packed = file.packed("w")
        assert packed is not None and bytes(packed.stored.tolist()) == bytes(stored)
        assert packed.stored.data_ptr() % 64 == 0
        assert file.packed("norm") is None
        assert same_bits(file.tensor("norm"), norm)


@pytest.mark.parametrize(("rows", "columns"), [(16, 128), (64, 1024), (70, 1000), (200, 253)])
def test_the_native_packer_and_unpacker_agree(tmp_path, rows, columns):
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
    assert same_bits(opened(stored, (rows, columns), tmp_path).unpacked(), values)
