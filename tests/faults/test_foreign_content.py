"""Files that hold something else than their name says (C8): each well-known one has a sentence with its remedy, in
every reader of a checkpoint's files."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from lluda.errors import CorruptFile
from lluda.files.json_file import read_json_object
from lluda.inputs.text.text_file import read_text
from lluda.weights.checkpoint import read_config
from lluda.weights.gguf.checkpoint import GGUFCheckpoint
from lluda.weights.safetensors.file import SafetensorsFile
from lluda.weights.safetensors.folder import FolderCheckpoint
from tests.faults.test_gguf_faults import head
from tests.faults.test_safetensors_faults import X, raw

# The pointer's layout is that of the Git LFS specification (docs/spec.md, "The Pointer").
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a" * 16 + b"\nsize 4967215128\n"


def zipped() -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"w": 1}))
    return data.getvalue()


def tarred() -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("config.json"))
    return data.getvalue()


FOREIGN = {
    "Git LFS pointer": (POINTER, "a Git LFS pointer, not the file: run 'git lfs pull'"),
    "web page": (b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title>", "a web page, not the file"),
    "error of a store": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "a web page, not the file"),
    "refusal": (b"Access to model org/name is restricted. You must be authenticated.", "a server's refusal"),
    "absent": (b"Entry not found", "a server's refusal"),
    "PyTorch": (zipped(), "a zip archive: if it is PyTorch's"),
    "pickle": (pickle.dumps({"w": [1.0]}, protocol=2), "a pickle, which can run code"),
    "gzip": (gzip.compress(b"{}"), "compressed: unpack it first"),
    "tar": (tarred(), "a tar archive"),
    "zeros": (bytes(4096), "zeros from its beginning on: its download was broken off"),
    "empty": (b"", "empty: its download or its writing was broken off"),
    "GGML": (b"tjgg" + bytes(64), "of a format before GGUF"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(64), "an HDF5 file"),
}
READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "safetensors": ("model.safetensors", SafetensorsFile),
    "gguf": ("model.gguf", GGUFCheckpoint),
    "config": ("config.json", lambda path: read_config(path.parent)),
    "index": ("model.safetensors.index.json", lambda path: FolderCheckpoint(path.parent)),
    "tokenizer": ("tokenizer.json", lambda path: read_json_object(path, max_bytes=2**20)),
    "merges": ("merges.txt", lambda path: read_text(path, 2**20)),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", FOREIGN)
def test_c8_each_reader_names_what_the_file_is(tmp_path: Path, kind: str, reader: str) -> None:
    content, what = FOREIGN[kind]
    name, read = READERS[reader]
    path = tmp_path / name
    path.write_bytes(content)
    if (reader, kind) == ("merges", "empty"):
        assert read(path) == ""
        return
    with pytest.raises(CorruptFile) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert f"the file is {what}" in message
    assert message.isprintable()


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("model.safetensors", head(0, 0), "a GGUF file: name it *.gguf"),
        ("model.safetensors", b'{"error":"Repository not found"}', "a server's refusal"),
        ("model.gguf", raw({"x": X}), "safetensors: name it model.safetensors in a folder with config.json"),
        ("config.json", raw({"x": X}), "safetensors: name it model.safetensors"),
        ("config.json", head(0, 0), "a GGUF file: name it *.gguf"),
        ("config.json", "{}".encode("utf-16"), "UTF-16 text: save it as UTF-8"),
    ],
)
def test_c8_one_of_our_own_formats_under_another_name(tmp_path: Path, name: str, content: bytes, what: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    read = {"model.safetensors": SafetensorsFile, "model.gguf": GGUFCheckpoint}.get(
        name, lambda p: read_config(p.parent)
    )
    with pytest.raises(CorruptFile, match=r"the file is ") as caught:
        read(path)
    assert what in str(caught.value)


@pytest.mark.parametrize("text", ["", "h e\nhe l\n", "{{ messages }}", "invalid {{ x }}" * 40, "# version: 0.2\nG G"])
def test_texts_that_are_texts_are_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "merges.txt").write_text(text)
    assert read_text(tmp_path / "merges.txt", 2**20) == text


def test_c8_a_broken_file_of_its_own_format_keeps_its_own_message(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"a": }')
    with pytest.raises(CorruptFile, match="not JSON"):
        read_config(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(raw(json.dumps({"x": X}).encode(), b"ab"))
    with pytest.raises(CorruptFile, match="ends after the file does; download or write it again"):
        SafetensorsFile(tmp_path / "model.safetensors")
