"""The safetensors writer against the reference reader, and files that appear only when whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lluda.convert.safetensors_writer import NewTensor, safetensors_header, write_safetensors
from lluda.files.atomic_file import atomic_file

safetensors = pytest.importorskip("safetensors", reason="safetensors is the reference here")

DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64", "I64": "int64", "U8": "uint8"}

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(lambda n: n != "__metadata__")
tensors = st.builds(
    NewTensor,
    name=names,
    shape=st.lists(st.integers(0, 4), max_size=3).map(tuple),
    dtype=st.sampled_from(sorted(DTYPES)),
)


def body(tensor: NewTensor) -> bytes:
    return bytes((7 * i + len(tensor.name)) % 251 for i in range(tensor.nbytes))


@given(stored=st.lists(tensors, max_size=6, unique_by=lambda t: t.name), piece=st.integers(1, 50))
@settings(max_examples=60, deadline=None)
def test_the_reference_reader_finds_every_tensor(tmp_path_factory, stored, piece):
    # Its checks want aligned values, which writers reach by putting wide types first.
    stored.sort(key=lambda tensor: tensor.dtype[-2:] not in ("64",))
    path = tmp_path_factory.mktemp("w") / "model.safetensors"

    def chunks(tensor: NewTensor):
        data = memoryview(body(tensor))
        return (data[i : i + piece] for i in range(0, len(data), piece))

    write_safetensors(path, stored, chunks)
    found = dict(safetensors.deserialize(path.read_bytes()))
    assert {name: (tuple(t["shape"]), t["dtype"], bytes(t["data"])) for name, t in found.items()} == {
        t.name: (t.shape, t.dtype, body(t)) for t in stored
    }
    with safetensors.safe_open(path, "numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_the_bytes_of_a_small_file(tmp_path):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, [NewTensor("w", (2,), "U8")], lambda _: [memoryview(b"\x01\x02")], metadata={})
    header = b'{"w":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}'
    padded = header + b" " * 3
    assert len(padded) % 8 == 0
    assert path.read_bytes() == bytes([len(padded)]) + bytes(7) + padded + b"\x01\x02"


def test_a_name_twice_is_our_mistake():
    with pytest.raises(AssertionError, match="twice"):
        safetensors_header([NewTensor("w", (1,), "U8")] * 2, {})


@pytest.mark.parametrize("data", [b"\x01", b"\x01\x02\x03"])
def test_too_few_or_many_bytes_are_our_mistake_and_leave_no_file(tmp_path, data):
    with pytest.raises(AssertionError, match="bytes made for 2"):
        write_safetensors(tmp_path / "a", [NewTensor("w", (2,), "U8")], lambda _: [memoryview(data)])
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), atomic_file(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old"
    with atomic_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
        assert sorted(one.name for one in Path(tmp_path).iterdir()) == [".a.partial", "a"]
    assert path.read_bytes() == b"new"
    assert [one.name for one in tmp_path.iterdir()] == ["a"]
