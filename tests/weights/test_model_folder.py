"""Files beside the weights are copied: into a synthesised, a packed and a quantised model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lluda.cli.main import main
from lluda.convert.pack_model import pack_model
from lluda.convert.quantize import TypeChoice
from lluda.convert.quantize_model import quantize_model
from lluda.errors import LludaError
from lluda.files.new_folder import MARKER, new_folder
from lluda.inputs.chat.chat_template import ChatTemplate
from lluda.weights.checkpoint import read_document
from lluda.weights.model_folder import SETTINGS_FILES, TOKENIZER_FILES, TOOL_TEMPLATE
from tests.conftest import TINY_QWEN3
from tests.inputs.conftest import write_tiny

# chat_template.json contradicts the jinja files: either has a test of its own.
WRITTEN = [name for name in TOKENIZER_FILES if name not in ("vocab.json", "merges.txt", "chat_template.json")]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A folder with every file that lluda reads, but for weights."""
    folder = tmp_path_factory.mktemp("source")
    (folder / "config.json").write_text(json.dumps(TINY_QWEN3))
    (folder / TOOL_TEMPLATE).parent.mkdir()
    for name in WRITTEN:
        (folder / name).write_text("{}" if name.endswith(".json") else f"a template in {name}")
    write_tiny(folder)
    for name in SETTINGS_FILES:
        (folder / name).write_text(json.dumps({"from": name}))
    return folder


@pytest.fixture(scope="module")
def model(source, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("synth") / "model"
    assert main(["synth", str(source), str(folder)]) == 0
    return folder


def test_synth_and_pack_take_every_file_along(source, model, tmp_path):
    pack_model(model, tmp_path / "packed")
    for folder in (model, tmp_path / "packed"):
        for name in (*WRITTEN, *SETTINGS_FILES):
            assert (folder / name).read_bytes() == (source / name).read_bytes(), name
        assert ChatTemplate.from_folder(folder).tool_source == f"a template in {TOOL_TEMPLATE}"


def test_another_tokenizer_leaves_the_settings(model, tmp_path):
    write_tiny(tmp_path)
    pack_model(model, tmp_path / "packed", tokenizer=tmp_path)
    names = {str(path.relative_to(tmp_path / "packed")) for path in (tmp_path / "packed").iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", *SETTINGS_FILES}


def test_one_file_has_them_all_and_gives_them_back(model, tmp_path):
    quantize_model(model, tmp_path / "model.gguf", TypeChoice("bf16"))
    pack_model(tmp_path / "model.gguf", tmp_path / "packed")
    for name in SETTINGS_FILES:
        assert read_document(tmp_path / "model.gguf", name)["from"] == name
        assert json.loads((tmp_path / "packed" / name).read_text())["from"] == name


def test_a_folder_within_is_removed_with_what_was_written(tmp_path):
    with pytest.raises(LludaError), new_folder(tmp_path / "new") as folder:
        folder.write_json("inner/a.json", {})
        raise LludaError("half way")
    assert not (tmp_path / "new").exists()
    inner = tmp_path / "killed" / "inner"
    inner.mkdir(parents=True)
    (inner / "a.json").write_text("{}")
    (tmp_path / "outside.json").write_text("{}")
    (tmp_path / "killed" / MARKER).write_bytes(b"inner/a.json\0../outside.json\0")
    with new_folder(tmp_path / "killed") as folder:
        folder.write_json("b.json", {})
    assert [path.name for path in (tmp_path / "killed").iterdir()] == ["b.json"]
    assert (tmp_path / "outside.json").exists()
