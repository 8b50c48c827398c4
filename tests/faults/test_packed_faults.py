"""Hostile packed files (docs/formats.md): each rule has its own message, and what passes is safe for the kernels."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lluda.backends.cpu.native_library import NativeContext
from lluda.errors import CorruptFile, NativeLibraryError
from lluda.formats.packed_bf16 import PackedSections
from lluda.weights.safetensors.file import SafetensorsFile
from tests.formats.packed_by_hand import pack_by_hand, write_packed

ROWS, COLUMNS = 3, 200


def good() -> bytearray:
    """A packed matrix with two escapes in its first row and one in its last."""
    values = (torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(1)) * 0.02).bfloat16()
    values[values.abs() < 2**-12] = 0.01
    values.view(torch.int16)[0, 5] = 1
    values.view(torch.int16)[0, 190] = 2
    values.view(torch.int16)[2, 0] = 3
    return pack_by_hand(values)


GOOD = good()
SECTIONS = PackedSections.of(ROWS, COLUMNS, 3)
assert len(GOOD) == SECTIONS.end


def with_bytes(at: int, data: bytes) -> bytearray:
    changed = bytearray(GOOD)
    changed[at : at + len(data)] = data
    return changed


def with_number(at: int, number: int) -> bytearray:
    return with_bytes(at, struct.pack("<q", number))


def with_words(at: int, *words: int) -> bytearray:
    return with_bytes(at, struct.pack(f"<{len(words)}I", *words))


BROKEN_BYTES: dict[str, tuple[bytearray, str]] = {
    "magic": (with_bytes(0, b"LLUDAPB2"), "must begin with LLUDAPB1"),
    "rows": (with_number(8, ROWS + 1), "header has another shape"),
    "rows below zero": (with_number(8, -ROWS), "header has another shape"),
    "columns": (with_number(16, COLUMNS + 1), "header has another shape"),
    "columns beyond int64's half": (with_number(16, 2**63 - 1), "header has another shape"),
    "length": (with_number(32, len(GOOD) + 64), "header has another length"),
    "length below zero": (with_number(32, -64), "header has another length"),
    "escapes below zero": (with_number(24, -1), "number of escapes is out of range"),
    "more escapes than weights": (with_number(24, ROWS * COLUMNS + 1), "number of escapes is out of range"),
    "escapes that do not fit": (with_number(24, 600), "length does not fit its shape and escapes"),
    "code 15": (with_bytes(55, b"\x70"), "code 15 must have the exponent 0"),
    "first row offset": (with_words(SECTIONS.escape_rows, 1), "escape rows must run from 0"),
    "last row offset": (with_words(SECTIONS.escape_rows + 4 * ROWS, 2), "escape rows must run from 0"),
    "descending row offsets": (with_words(SECTIONS.escape_rows + 4, 3, 2), "escape rows must not descend"),
    "row offset beyond the escapes": (with_words(SECTIONS.escape_rows + 4, 0xFFFFFFFF), "must not descend"),
    "column beyond the row": (with_words(SECTIONS.escape_columns, 5, COLUMNS), "column is beyond the row"),
    "column of 2^32 - 1": (with_words(SECTIONS.escape_columns + 8, 0xFFFFFFFF), "column is beyond the row"),
    "descending columns": (with_words(SECTIONS.escape_columns, 190, 5), "columns must ascend within a row"),
    "a column twice": (with_words(SECTIONS.escape_columns, 5, 5), "columns must ascend within a row"),
}


@pytest.mark.parametrize(("stored", "rule"), BROKEN_BYTES.values(), ids=BROKEN_BYTES)
@pytest.mark.parametrize("read", ["tensor", "stored"])
def test_broken_bytes_are_told_by_their_rule(tmp_path, stored, rule, read):
    path = write_packed(tmp_path / "x.safetensors", {"w": stored}, {"w": [ROWS, COLUMNS]})
    with SafetensorsFile(path) as file, pytest.raises(CorruptFile, match=rule) as error:
        getattr(file, read)("w")
    assert str(path) in str(error.value) and "'w'" in str(error.value)


DECLARATIONS: dict[str, tuple[Any, str]] = {
    "a list": ([], "must be an object of shapes"),
    "a number as shape": ({"w": 5}, "two integers from 1"),
    "one dimension": ({"w": [600]}, "two integers from 1"),
    "three dimensions": ({"w": [3, 20, 10]}, "two integers from 1"),
    "no rows": ({"w": [0, COLUMNS]}, "two integers from 1"),
    "truth as a size": ({"w": [True, COLUMNS]}, "two integers from 1"),
    "a fraction": ({"w": [3.0, COLUMNS]}, "two integers from 1"),
    "2^31 rows": ({"w": [2**31, COLUMNS]}, "two integers from 1"),
    "too large a shape": ({"w": [2**31 - 1, 2**31 - 1]}, "too short for its shape"),
    "one row more": ({"w": [ROWS + 1, COLUMNS]}, "too short for its shape"),
    "not in the file": ({"v": [ROWS, COLUMNS]}, "declared but not in the file"),
    "a plain tensor": ({"n": [1, 2]}, "must be stored as bytes"),
}


@pytest.mark.parametrize(("shapes", "rule"), DECLARATIONS.values(), ids=DECLARATIONS)
def test_a_false_declaration_is_refused_on_opening(tmp_path, shapes, rule):
    plain = {"n": torch.ones(1, 2).bfloat16()}
    path = write_packed(tmp_path / "x.safetensors", {"w": GOOD}, shapes, plain)
    with pytest.raises(CorruptFile, match=rule):
        SafetensorsFile(path)


def test_a_declaration_that_is_not_json(tmp_path):
    path = write_packed(tmp_path / "x.safetensors", {"w": GOOD}, "x")
    path.write_bytes(path.read_bytes().replace(b'"\\"x\\""', b'"{\\"x" '))
    with pytest.raises(CorruptFile, match=r"metadata lluda\.packed_bf16: not JSON"):
        SafetensorsFile(path)


def test_a_declaration_that_names_a_tensor_twice(tmp_path):
    path = write_packed(tmp_path / "x.safetensors", {"w": GOOD}, {"w": [ROWS, COLUMNS], "v": [ROWS, COLUMNS]})
    path.write_bytes(path.read_bytes().replace(b'\\"v\\"', b'\\"w\\"', 1))
    with pytest.raises(CorruptFile, match="appears twice"):
        SafetensorsFile(path)


def test_a_packed_tensor_that_is_not_aligned(tmp_path):
    path = write_packed(tmp_path / "x.safetensors", {"a": b"12345678", "w": GOOD}, {"w": [ROWS, COLUMNS]})
    with pytest.raises(CorruptFile, match="must begin at a multiple of 64 bytes"):
        SafetensorsFile(path)


def test_a_truncated_file(tmp_path):
    path = write_packed(tmp_path / "x.safetensors", {"w": GOOD}, {"w": [ROWS, COLUMNS]})
    path.write_bytes(path.read_bytes()[:-64])
    with pytest.raises(CorruptFile, match="ends after the file does"):
        SafetensorsFile(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(GOOD) - 4), st.binary(min_size=1, max_size=4))
def test_any_changed_bytes_are_refused_or_harmless(tmp_path, at, data):
    """Refused by us, or unpacked by us and by the library to the same bits."""
    stored = with_bytes(at, data)
    path = write_packed(tmp_path / f"{at}.safetensors", {"w": stored}, {"w": [ROWS, COLUMNS]})
    with SafetensorsFile(path) as file:
        try:
            packed = file.stored("w")
        except CorruptFile:
            return
        unpacked = packed.decode()
        assert unpacked.shape == (ROWS, COLUMNS)
        native_unpack = _native_unpack()
        if native_unpack:
            assert torch.equal(native_unpack(packed.data).view(torch.int16), unpacked.view(torch.int16))


def _native_unpack() -> Callable[[torch.Tensor], torch.Tensor] | None:
    try:
        native = NativeContext()
    except NativeLibraryError:
        return None

    def unpack(stored: torch.Tensor) -> torch.Tensor:
        values = torch.empty(ROWS, COLUMNS, dtype=torch.bfloat16)
        native.check(native.unpack(ctypes.byref(native.library.packed_view(stored)), values.data_ptr()))
        return values

    return unpack


def test_the_command_refuses_a_hostile_packed_model_in_one_line(tmp_path, capsys):
    from lluda.cli.main import main
    from tests.cli.conftest import CONFIG, write_model

    folder: Path = write_model(tmp_path / "m")
    width = CONFIG["hidden_size"]
    vocabulary = CONFIG["vocab_size"]
    with SafetensorsFile(folder / "model.safetensors") as file:
        tensors = {name: file.tensor(name).clone() for name in file.entries}
    embedding = pack_by_hand(tensors.pop("model.embed_tokens.weight"))
    embedding[0] = 0
    shapes = {"model.embed_tokens.weight": [vocabulary, width]}
    write_packed(folder / "model.safetensors", {"model.embed_tokens.weight": embedding}, shapes, tensors)
    assert main(["generate", "-m", str(folder), "--raw", "hello", "-n", "1"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "must begin with LLUDAPB1" in lines[0]
