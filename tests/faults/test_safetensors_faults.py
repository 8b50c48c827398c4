"""Broken safetensors files (rows A8, A9, A20): each rule has its own message, little time and little memory."""

from __future__ import annotations

import json
import os
import string
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lluda.errors import CorruptFile
from lluda.weights.safetensors.file import SafetensorsFile
from tests.conftest import watchdog

SECONDS = 0.2
X = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}
X_JSON = b'{"dtype":"U8","shape":[4],"data_offsets":[0,4]}'


def raw(header: bytes | dict[str, Any], data: bytes = b"abcd", *, length: int | None = None) -> bytes:
    text = json.dumps(header).encode() if isinstance(header, dict) else header
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def one(**changes: Any) -> bytes:
    """A file whose only tensor is described by X with ``changes``."""
    return raw({"x": X | changes})


def two(first: tuple[int, int], second: tuple[int, int], data: bytes = b"abcd") -> bytes:
    spans = {"a": first, "b": second}
    return raw({n: X | {"shape": [e - b], "data_offsets": [b, e]} for n, (b, e) in spans.items()}, data)


MALFORMED = {
    "file of 0 bytes": (b"", "the file is empty"),
    "file of 7 bytes": (b"\2\0\0\0\0\0\0", "too short for a safetensors file"),
    "length 2^64-1": (b"\xff" * 8 + b"{}", "header's length is over the limit"),
    "length 100 MB and 1": (raw(b"{}", length=100_000_001), "header's length is over the limit"),
    "length beyond the file": (raw(b"{}", b"", length=3), "header is longer than the file"),
    "header of 0 bytes": (raw(b""), "header must begin with"),
    "leading space": (raw(b" {}", b""), "header must begin with"),
    "byte order mark": (raw(b"\xef\xbb\xbf{}", b""), "header must begin with"),
    "an array": (raw(b"[]", b""), "header must begin with"),
    "not UTF-8": (raw(b'{"\xff":' + X_JSON + b"}"), "not UTF-8"),
    "a surrogate in UTF-8": (raw(b'{"\xed\xa0\x80":' + X_JSON + b"}"), "not UTF-8"),
    "not JSON": (raw(b"{x}", b""), "a tensor name is expected here, in double quotes"),
    "unfinished": (raw(b'{"x":' + X_JSON), "',' is expected here"),
    "unfinished name": (raw(b'{"x'), "is not a JSON string"),
    "control character in a string": (raw(b'{"a\nb":' + X_JSON + b"}"), "is not a JSON string"),
    "no colon": (raw(b'{"x"' + X_JSON + b"}"), "':' is expected here"),
    "trailing comma": (raw(b'{"x":' + X_JSON + b",}"), "a tensor name is expected here"),
    "text after the header": (raw(b'{"x":' + X_JSON + b"} x"), "only spaces may follow"),
    "newline as padding": (raw(b'{"x":' + X_JSON + b"}\n"), "only spaces may follow"),
    "NUL as padding": (raw(b'{"x":' + X_JSON + b"}\0"), "only spaces may follow"),
    "duplicate tensor name": (raw(b'{"x":' + X_JSON + b',"x":' + X_JSON + b"}"), "a name appears twice"),
    "duplicate name by escape": (raw(b'{"x":' + X_JSON + b',"\\u0078":' + X_JSON + b"}"), "a name appears twice"),
    "duplicate metadata": (raw(b'{"__metadata__":{},"__metadata__":{}}', b""), "a name appears twice"),
    "duplicate metadata key": (raw(b'{"__metadata__":{"a":"1","a":"2"}}', b""), "a key of __metadata__ appears twice"),
    "duplicate field": (raw(b'{"x":{"dtype":"U8",' + X_JSON[1:] + b"}"), "'dtype' appears twice"),
    "empty name": (raw({"": X}), "a tensor name is empty"),
    "control character in a name": (raw({"a\u0007": X}), "unprintable characters"),
    "right-to-left override in a name": (raw({"a\u202eb": X}), "unprintable characters"),
    "lone surrogate in a name": (raw(b'{"\\ud800":' + X_JSON + b"}"), "unprintable characters"),
    "name with a leading space": (raw({" x": X}), "begins or ends with a space"),
    "name with a trailing space": (raw({"x ": X}), "begins or ends with a space"),
    "metadata is a string": (raw({"__metadata__": "pt"}, b""), "__metadata__ must be an object of strings"),
    "metadata is null": (raw({"__metadata__": None}, b""), "__metadata__ must be an object of strings"),
    "metadata with an integer": (raw({"__metadata__": {"a": 1}}, b""), "a string as the value of __metadata__"),
    "metadata with an object": (raw({"__metadata__": {"a": {}}}, b""), "a string as the value of __metadata__"),
    "description is an array": (raw({"x": [1]}), "must have an object as its description"),
    "description is null": (raw({"x": None}), "must have an object as its description"),
    "description without end": (raw(b'{"x":{"dtype":"U8"' + b" " * 9000), "characters or without end"),
    "deep JSON": (raw(b'{"x":{"shape":' + b"[" * 100_000 + b"]" * 100_000 + b"}}"), "characters or without end"),
    "deep JSON, short": (raw(b'{"x":{"shape":' + b"[" * 999 + b"]" * 999 + b"}}"), "nested too deep"),
    "nested description": (raw(b'{"x":{"shape":{}}}'), "not JSON"),
    "field missing": (raw({"x": {"dtype": "U8", "shape": [4]}}), "the description's fields"),
    "field unknown": (one(strides=[1]), "the description's fields"),
    "dtype unknown": (one(dtype="F7"), "unknown dtype"),
    "dtype in small letters": (one(dtype="u8"), "unknown dtype"),
    "dtype is a number": (one(dtype=8), "unknown dtype"),
    "dtype is a list": (one(dtype=["U8"]), "unknown dtype"),
    "shape is a number": (one(shape=4), "shape must be a list of integers"),
    "shape negative": (one(shape=[-4]), "shape must be a list of integers"),
    "shape boolean": (one(shape=[4, True]), "shape must be a list of integers"),
    "shape fractional": (one(shape=[4.0]), "shape must be a list of integers"),
    "shape a string": (one(shape=["4"]), "shape must be a list of integers"),
    "shape of NaN": (raw(b'{"x":{"dtype":"U8","shape":[NaN],"data_offsets":[0,4]}}'), "NaN is not a JSON number"),
    "shape of 10^400": (one(shape=[10**400]), "an integer of 401 digits"),
    "shape of 40 dimensions": (one(shape=[1] * 39 + [4]), "than 32 dimensions take"),
    "shape overflows": (one(shape=[2**32, 2**32]), "shape overflows"),
    "shape overflows beside a zero": (one(shape=[2**40, 2**40, 0], data_offsets=[0, 0]), "shape overflows"),
    "bytes overflow": (one(dtype="F64", shape=[2**62]), "shape overflows"),
    "sub-byte rest": (one(dtype="F4", shape=[3], data_offsets=[0, 1]), "must fill whole bytes"),
    "one offset": (one(data_offsets=[4]), "two integers"),
    "three offsets": (one(data_offsets=[0, 4, 4]), "two integers"),
    "offset negative": (one(data_offsets=[-4, 0]), "two integers"),
    "offset boolean": (one(data_offsets=[False, 4]), "two integers"),
    "end before begin": (one(data_offsets=[4, 0]), "end before they begin"),
    "span too short": (one(data_offsets=[0, 3]), "do not span the bytes of shape"),
    "span too long": (one(shape=[3]), "do not span the bytes of shape"),
    "offsets 2^64": (one(data_offsets=[2**64, 2**64 + 4]), "ends after the file does"),
    "data short": (raw({"x": X}, b"abc"), "ends after the file does"),
    "data trailing": (raw({"x": X}, b"abcde"), "bytes after the last tensor"),
    "data without tensors": (raw(b"{}"), "bytes after the last tensor"),
    "overlap": (two((0, 3), (2, 4)), "overlaps"),
    "the same bytes twice": (two((0, 4), (0, 4)), "overlaps"),
    "empty tensor inside another": (two((0, 4), (2, 2)), "overlaps"),
    "hole": (two((0, 1), (2, 4)), "leaves a hole after"),
    "hole at the start": (two((1, 2), (2, 4)), "leaves a hole after the header"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a8_malformed_file_breaks_its_own_rule(tmp_path: Path, case: str) -> None:
    content, rule = MALFORMED[case]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with watchdog(SECONDS), pytest.raises(CorruptFile) as caught:
        SafetensorsFile(path)
    assert str(path) in str(caught.value)
    assert rule in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 700


@pytest.mark.parametrize("case", MALFORMED)
def test_a8_memory_is_bounded_by_the_file(tmp_path: Path, case: str) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(MALFORMED[case][0])
    assert peak_memory(path) < 100_000 + 4 * path.stat().st_size


@pytest.mark.parametrize(
    "header",
    [
        b'{"x":{"dtype":"U8","shape":[' + b"[]," * 1_000_000 + b"[]]}}",
        b'{"x":' + b'{"a":' * 600_000 + b"1" + b"}" * 600_000 + b"}",
        b'{"__metadata__":{"a":' + b"[" * 3_000_000,
        b"{" + b" " * 3_000_000 + b"x",
        b'{"' + b"n" * 3_000_000,
        b"{}" + b" " * 3_000_000 + b"x",
    ],
    ids=["lists in a shape", "objects", "lists in metadata", "white space", "endless name", "padding"],
)
def test_a8_a_large_header_is_not_parsed_beyond_its_first_fault(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(raw(header, b""))
    with watchdog(SECONDS), pytest.raises(CorruptFile):
        SafetensorsFile(path)
    assert peak_memory(path) < 100_000 + 4 * path.stat().st_size


def peak_memory(path: Path) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(CorruptFile):
            SafetensorsFile(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "loop of links"])
def test_a8_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.safetensors"
    make: dict[str, Callable[[], object]] = {
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "loop of links": lambda: path.symlink_to(path),
    }
    make[kind]()
    rule = "leads back to itself" if kind == "loop of links" else "a regular file is needed"
    with pytest.raises(CorruptFile, match=rule):
        SafetensorsFile(path)


def test_a8_a_bool_is_0_or_1(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw({"x": X | {"dtype": "BOOL"}}, b"\0\1\2\0"))
    with pytest.raises(CorruptFile, match="'x': a BOOL byte must be 0 or 1"):
        SafetensorsFile(path).tensor("x")


@pytest.fixture
def opened(tmp_path: Path) -> SafetensorsFile:
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw({"x": X}))
    return SafetensorsFile(path)


def test_a9_truncated_after_open(opened: SafetensorsFile) -> None:
    os.truncate(opened.path, 40)
    with pytest.raises(CorruptFile, match="changed its size after it was opened"):
        opened.tensor("x")


def test_a9_grown_after_open(opened: SafetensorsFile) -> None:
    with opened.path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(CorruptFile, match="changed its size after it was opened"):
        opened.tensor("x")


def test_a9_rewritten_in_place_after_open(opened: SafetensorsFile) -> None:
    opened.path.write_bytes(opened.path.read_bytes()[:-1] + b"!")
    os.utime(opened.path, ns=(0, 10**18))
    with pytest.raises(CorruptFile, match="was written to after it was opened"):
        opened.check_unchanged()


def test_a9_replaced_after_open(opened: SafetensorsFile) -> None:
    other = opened.path.with_name("other")
    other.write_bytes(opened.path.read_bytes())
    other.rename(opened.path)
    with pytest.raises(CorruptFile, match="was replaced by another"):
        opened.tensor("x")


def test_a9_removed_after_open(opened: SafetensorsFile) -> None:
    opened.path.unlink()
    with pytest.raises(CorruptFile, match="was removed after it was opened"):
        opened.tensor("x")


def test_a9_a_tensor_mapped_before_a_replacement_keeps_the_old_values(opened: SafetensorsFile) -> None:
    tensor = opened.tensor("x")
    other = opened.path.with_name("other")
    other.write_bytes(raw({"x": X}, b"wxyz"))
    other.rename(opened.path)
    assert bytes(tensor.tolist()) == b"abcd"


def test_a9_the_path_may_be_relative_to_a_folder_left_since(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.safetensors").write_bytes(raw({"x": X}))
    monkeypatch.chdir(tmp_path)
    file = SafetensorsFile(Path("x.safetensors"))
    monkeypatch.chdir("/")
    assert file.tensor("x").tolist() == [97, 98, 99, 100]


SMALL = raw(
    {"__metadata__": {"a": "b"}, "x": X | {"dtype": "BF16", "shape": [2, 1]}, "y": X | {"data_offsets": [4, 8]}},
    b"abcdefgh",
)


def all_values(path: Path, content: bytes) -> dict[str, list[Any]] | None:
    """Every tensor's raw bytes, or None if the file was refused; any other error is the test's failure."""
    path.write_bytes(content)
    try:
        with watchdog(SECONDS), SafetensorsFile(path) as file:
            return {name: file.tensor(name).view(-1).view(torch.uint8).tolist() for name in file.entries}
    except CorruptFile:
        return None


def test_a20_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    assert all_values(path, SMALL) == {"x": [*b"abcd"], "y": [*b"efgh"]}
    for end in range(len(SMALL)):
        assert all_values(path, SMALL[:end]) is None, end


def test_a20_every_bit_flip_is_refused_or_changes_only_what_it_says(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    data_start, accepted = len(SMALL) - 8, 0
    for at in range(len(SMALL)):
        for bit in range(8):
            content = bytearray(SMALL)
            content[at] ^= 1 << bit
            values = all_values(path, bytes(content))
            accepted += values is not None
            if at >= data_start:
                assert values == {"x": [*content[data_start : data_start + 4]], "y": [*content[data_start + 4 :]]}
            elif values is not None:
                assert sorted(byte for part in values.values() for byte in part) == [*b"abcdefgh"], (at, bit)
    assert accepted < 64 + 200  # the data's bits, and flips within names, metadata and dtypes of the same size


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
descriptions = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["U8", "BOOL", "F16", "F32", "F4", "C64"]) | json_values,
        "shape": st.lists(st.integers(-1, 5) | st.integers(), max_size=4) | json_values,
        "data_offsets": st.lists(st.integers(-1, 20) | st.integers(), min_size=2, max_size=2) | json_values,
    }
)
headers = st.dictionaries(
    st.sampled_from(["__metadata__", "a", "b"]) | st.text(max_size=4), descriptions | json_values, max_size=3
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=headers, data=st.binary(max_size=24))
def test_a20_random_headers_are_refused_or_read(tmp_path: Path, header: dict[str, Any], data: bytes) -> None:
    all_or_unsupported(tmp_path / "x.safetensors", raw(header, data))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(alphabet=string.punctuation + string.digits + ' \n"aU8\u0000é', max_size=60),
    data=st.binary(max_size=8),
)
def test_a20_random_text_as_header_is_refused_or_read(tmp_path: Path, text: str, data: bytes) -> None:
    all_or_unsupported(tmp_path / "x.safetensors", raw(b"{" + text.encode(), data))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=64))
def test_a20_random_bytes_are_refused_or_read(tmp_path: Path, content: bytes) -> None:
    all_or_unsupported(tmp_path / "x.safetensors", content)


def all_or_unsupported(path: Path, content: bytes) -> None:
    """The file is refused, or all its tensors hold exactly its data (but F4, which is only listed)."""
    path.write_bytes(content)
    try:
        file = SafetensorsFile(path)
        names = [name for name, entry in file.entries.items() if entry.dtype != "F4"]
        read = b"".join(bytes(file.tensor(name).view(-1).view(torch.uint8).tolist()) for name in names)
    except CorruptFile:
        return
    if len(names) == len(file.entries):
        assert content.endswith(read)
        assert len(content) == len(read) + 8 + int.from_bytes(content[:8], "little")
