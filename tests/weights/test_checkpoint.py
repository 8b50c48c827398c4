"""One way to open a folder and a .gguf file, and to read what each says of itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lluda.errors import CorruptFile, ModelNotFound
from lluda.weights.checkpoint import (
    ModelSource,
    open_checkpoint,
    read_config,
    read_generation_config,
    read_gguf_metadata,
)
from lluda.weights.hub.sources import find_source, resolve_model
from lluda.weights.safetensors import file as safetensors

gguf = pytest.importorskip("gguf")

NUMBERS = {
    "vocab_size": 8,
    "block_count": 1,
    "context_length": 64,
    "embedding_length": 32,
    "feed_forward_length": 32,
    "attention.head_count": 1,
    "attention.head_count_kv": 1,
    "attention.key_length": 32,
    "attention.value_length": 32,
}
LAYER = "attn_norm attn_q attn_k attn_v attn_output attn_q_norm attn_k_norm ffn_norm ffn_gate ffn_up ffn_down"
SHAPES = {"token_embd": (8, 32), "output_norm": (32,)} | {
    f"blk.0.{name}": (32,) * (1 if "norm" in name else 2) for name in LAYER.split()
}


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "qwen3")
    for key, value in NUMBERS.items():
        writer.add_uint32(f"qwen3.{key}", value)
    writer.add_float32("qwen3.attention.layer_norm_rms_epsilon", 1e-6)
    writer.add_float32("qwen3.rope.freq_base", 1e6)
    for name, shape in SHAPES.items():
        writer.add_tensor(f"{name}.weight", np.full(shape, 0.5, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    header = json.dumps({"model.norm.weight": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\x07")
    (tmp_path / "config.json").write_text('{"model_type": "qwen3", "unknown": [1e-6]}')
    return tmp_path


def test_a_folder(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    assert list(checkpoint.entries) == ["model.norm.weight"]
    assert checkpoint.tensor("model.norm.weight").tolist() == [7]
    assert read_config(folder) == {"model_type": "qwen3", "unknown": [1e-6]}
    assert read_generation_config(folder) == {}


def test_a_gguf_file(gguf_file: Path) -> None:
    checkpoint = open_checkpoint(gguf_file)
    assert len(checkpoint.entries) == len(SHAPES)
    assert checkpoint.tensor("model.norm.weight").tolist() == [0.5] * 32
    config = read_config(gguf_file)
    assert (config["model_type"], config["hidden_size"]) == ("qwen3", 32)
    assert read_gguf_metadata(gguf_file)["qwen3.block_count"] == 1
    assert read_generation_config(gguf_file) == {}


def test_a_prefix_selects_in_a_gguf_file_too(gguf_file: Path) -> None:
    checkpoint = open_checkpoint(gguf_file, prefix=("model.layers.", "model.norm."))
    assert len(checkpoint.entries) == len(SHAPES) - 1
    assert checkpoint.tensor("model.layers.0.self_attn.q_proj.weight").shape == (32, 32)
    assert "model.embed_tokens.weight" not in checkpoint.entries


def test_neither(folder: Path) -> None:
    for read in (open_checkpoint, read_config, read_gguf_metadata):
        with pytest.raises(ModelNotFound, match="not a model; give a model folder"):
            read(folder / "config.json")
    (folder / "x.gguf").write_bytes(b"not GGUF")
    with pytest.raises(CorruptFile, match=r"x\.gguf"):
        read_config(folder / "x.gguf")
    with pytest.raises(ModelNotFound, match="no such file"):
        open_checkpoint(folder / "absent.gguf")


@pytest.mark.parametrize("name", ["TINY.GGUF", "tiny.Gguf"])
def test_b4_a_gguf_file_named_in_capitals(gguf_file: Path, name: str) -> None:
    path = gguf_file.rename(gguf_file.with_name(name))
    assert resolve_model(path) == path
    assert len(open_checkpoint(path).entries) == len(SHAPES)
    assert read_config(find_source(path))["model_type"] == "qwen3"


def test_a_folder_is_not_taken_for_a_file_by_its_name(folder: Path) -> None:
    named = folder.rename(folder.with_name("folder.gguf"))
    assert not find_source(named).is_gguf
    assert read_config(find_source(named))["model_type"] == "qwen3"


def test_c6_the_heads_of_a_folder_are_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, count = safetensors.read_header, 0

    def counted(*arguments: object) -> object:
        nonlocal count
        count += 1
        return read(*arguments)

    monkeypatch.setattr(safetensors, "read_header", counted)
    source = ModelSource(folder)
    first, second = open_checkpoint(source), open_checkpoint(source)
    assert count == 1
    first.close()  # each user has files of its own
    assert second.tensor("model.norm.weight").tolist() == [7]


@pytest.mark.parametrize("kind", ["folder", "gguf_file"])
def test_c6_a_source_that_changed_is_not_opened_again(kind: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(kind)
    source = ModelSource(path)
    open_checkpoint(source).close()
    file = path if path.is_file() else path / "model.safetensors"
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(CorruptFile, match="changed its size after it was opened"):
        open_checkpoint(source)
