"""The GGUF writer: what it writes the gguf package and lluda read back, whole or in parts."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from lluda.convert import gguf_writer
from lluda.convert.gguf_writer import EncodedKey, NewTensor, write_gguf
from lluda.errors import InvalidRequest, LludaError, UnsupportedModel
from lluda.weights.gguf.file import GGUFFile

VALUES = {
    "text": "héllo",
    "yes": True,
    "no": False,
    "count": 7,
    "part": 0.5,
    "words": ["a", "", "ß"],
    "short": np.uint16(3),
    "long": np.int64(-5),
    "kinds": np.array([1, -2, 3], dtype=np.int32),
    "scores": np.array([0.5, 2.0], dtype=np.float32),
}


def tensor(name: str, values: np.ndarray) -> NewTensor:
    def write(file) -> str:
        file.write(values.tobytes())
        return "F32"

    return NewTensor(name, values.shape, "F32", values.nbytes, write)


def some(count: int = 3) -> dict[str, np.ndarray]:
    return {f"t{index}": np.random.default_rng(index).random((5, 3), np.float32) for index in range(count)}


def test_the_gguf_package_reads_every_key_and_tensor(tmp_path: Path) -> None:
    tensors = some()
    metadata = {"general.architecture": "x", **VALUES}
    assert write_gguf(tmp_path / "a.gguf", metadata, [tensor(*one) for one in tensors.items()]) == [tmp_path / "a.gguf"]
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    for key, value in metadata.items():
        found = reader.fields[key].contents()
        assert found == (value.tolist() if isinstance(value, np.generic | np.ndarray) else value), key
    kinds = {key: reader.fields[key].types[0] for key in ("count", "part", "short", "long")}
    types = gguf.GGUFValueType
    assert kinds == {"count": types.UINT32, "part": types.FLOAT32, "short": types.UINT16, "long": types.INT64}
    for found in reader.tensors:
        assert np.array_equal(found.data, tensors[found.name])


def test_keys_are_carried_over_with_their_types(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", VALUES, [tensor("t", np.ones((2, 2), np.float32))])
    with GGUFFile(tmp_path / "a.gguf") as file:
        keys = {key: EncodedKey(file.encoded_key(key)) for key in file.metadata}
    write_gguf(tmp_path / "b.gguf", keys, [tensor("t", np.ones((2, 2), np.float32))])
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.mark.parametrize("split", [60, 120, 179, 1])
def test_parts_hold_what_the_whole_holds(tmp_path: Path, split: int) -> None:
    tensors = some(5)
    paths = write_gguf(tmp_path / "m.gguf", VALUES, [tensor(*one) for one in tensors.items()], split_bytes=split)
    assert len(paths) == {60: 5, 120: 3, 179: 3, 1: 5}[split]
    assert [path.name for path in paths] == [f"m-{n:05}-of-{len(paths):05}.gguf" for n in range(1, len(paths) + 1)]
    found: list[str] = []
    for number, path in enumerate(paths):
        with GGUFFile(path) as file:
            assert file.metadata["split.no"] == number
            assert file.metadata["split.count"] == len(paths)
            assert file.metadata["split.tensors.count"] == 5
            assert ("text" in file.metadata) == (number == 0)
            found += file.entries
    assert found == list(tensors)


def test_a_tensor_may_settle_its_type_while_it_is_written(tmp_path: Path) -> None:
    values = np.arange(32, dtype=np.float32).reshape(1, 32)
    planned = NewTensor("t", (1, 32), "Q8_0", 128, tensor("t", values).write)
    write_gguf(tmp_path / "a.gguf", {}, [planned, tensor("u", values)])
    with GGUFFile(tmp_path / "a.gguf") as file:
        assert [entry.dtype for entry in file.entries.values()] == ["F32", "F32"]
        assert file.tensor("u").tolist() == values.tolist()


@pytest.mark.parametrize("name", ["a.bin", "a"])
def test_other_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidRequest, match=r"must be named \*\.gguf"):
        write_gguf(tmp_path / name, {}, [tensor("t", np.ones(3, np.float32))])


def test_a_file_that_exists_is_kept(tmp_path: Path) -> None:
    (tmp_path / "m-00002-of-00003.gguf").write_text("mine")
    with pytest.raises(InvalidRequest, match=r"m-00002-of-00003\.gguf: exists"):
        write_gguf(tmp_path / "m.gguf", {}, [tensor(*one) for one in some().items()], split_bytes=1)
    assert [path.name for path in tmp_path.iterdir()] == ["m-00002-of-00003.gguf"]
    assert (tmp_path / "m-00002-of-00003.gguf").read_text() == "mine"


def test_names_longer_than_ggmls_are_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", {}, [tensor("x" * 63, np.ones(3, np.float32))])
    with pytest.raises(UnsupportedModel, match="63 bytes"):
        write_gguf(tmp_path / "b.gguf", {}, [tensor("x" * 64, np.ones(3, np.float32))])


@pytest.mark.parametrize("split", [0, -1])
def test_a_split_below_one_byte(tmp_path: Path, split: int) -> None:
    with pytest.raises(InvalidRequest, match="split_bytes must be at least 1"):
        write_gguf(tmp_path / "b.gguf", {}, [tensor("x", np.ones(3, np.float32))], split_bytes=split)


def test_a_disk_too_small_is_told_before_anything_is_written(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(gguf_writer.shutil, "disk_usage", lambda _: type("usage", (), {"free": 10}))
    with pytest.raises(LludaError, match="needs 60 bytes but 10 are free"):
        write_gguf(tmp_path / "a.gguf", {}, [tensor("x", np.ones((5, 3), np.float32))])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("split", [None, 1])
def test_nothing_is_left_after_a_failure(tmp_path: Path, split: int | None) -> None:
    def fail(_file) -> str:
        raise OSError(28, "No space left on device")

    broken = NewTensor("t0", (5, 3), "F32", 60, fail)
    with pytest.raises(LludaError, match="free disk space"):
        write_gguf(tmp_path / "a.gguf", {}, [broken, *(tensor(*one) for one in some().items() if one[0] != "t0")],
                   split_bytes=split)  # fmt: skip
    assert not list(tmp_path.iterdir())
