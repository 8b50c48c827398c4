from __future__ import annotations

import json

import pytest
import torch

from lluda.backends.cpu.native_library import native_library
from lluda.errors import NativeLibraryError
from lluda.weights.checkpoint import open_checkpoint
from tests.cli.conftest import CONFIG, write_model

WIDE = {"hidden_size": 256, "head_dim": 128, "num_attention_heads": 2, "num_key_value_heads": 1}


@pytest.fixture(autouse=True, scope="module")
def _library():
    try:
        native_library()
    except NativeLibraryError as error:
        pytest.skip(f"the native library is not built: {error}")


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A model whose rows are as wide as blocks; its down_proj (96 columns) does not compress."""
    return write_model(tmp_path_factory.mktemp("pack") / "wide", WIDE)


@pytest.fixture(scope="module")
def packed(wide, tmp_path_factory):
    from lluda.convert.pack_model import pack_model

    folder = tmp_path_factory.mktemp("packed") / "wide"
    pack_model(wide, folder)
    return folder


def answer(lluda, model, *options):
    printed = lluda("generate", "-m", model, "--raw", "hello", "-n", 8, "-t", 0, "--ignore-eos", *options)
    assert printed.code == 0, printed.err
    return printed


def test_files_are_named_and_what_it_came_to_is_said(lluda, wide, tmp_path):
    out = tmp_path / "a" / "out"
    printed = lluda("pack", "-m", wide, out)
    assert printed.code == 0
    assert sorted(printed.out.splitlines()) == sorted(str(path) for path in out.iterdir())
    kept, packed = printed.lines
    assert "kept BF16, as they do not compress: model.layers.0.mlp.down_proj.weight, " in kept
    assert "matrices packed and compared bit for bit: " in packed
    for name in ("config.json", "tokenizer_config.json", "tokenizer.json"):
        assert (out / name).exists() == (wide / name).exists()
        if (out / name).exists():
            assert (out / name).read_bytes() == (wide / name).read_bytes()


def test_every_value_is_the_same(wide, packed):
    before, after = open_checkpoint(wide), open_checkpoint(packed)
    assert before.entries.keys() == after.entries.keys()
    for name in before.entries:
        assert torch.equal(before.tensor(name).view(torch.int16), after.tensor(name).view(torch.int16)), name
    assert after.entries["model.embed_tokens.weight"].dtype == "PACKED_BF16"


def test_without_the_native_library_torch_packs_the_same_file(lluda, wide, packed, tmp_path, monkeypatch):
    def missing(**_):
        raise NativeLibraryError("the native library is not built")

    monkeypatch.setattr("lluda.convert.pack_model.NativeContext", missing)
    printed = lluda("pack", "-m", wide, tmp_path / "out", "--threads", 1)
    assert printed.code == 0, printed.err
    assert "packed in torch: the native library is not built" in printed.err
    ours, native = ((folder / "model.safetensors").read_bytes() for folder in (tmp_path / "out", packed))
    assert ours == native


def test_packed_ahead_and_packed_while_loading_answer_alike(lluda, wide, packed):
    ahead, loading = answer(lluda, packed), answer(lluda, wide, "--weights", "packed")
    assert ahead.out == loading.out
    for printed in (ahead, loading):
        assert "cpu backend" in printed.err and "packed BF16" in printed.err
        assert "kept BF16, as they do not compress: model.layers.0.mlp.down_proj.weight" in printed.err
    assert "--weights" not in ahead.err


@pytest.mark.parametrize(
    "options",
    [
        ("--backend", "reference"),
        ("--dtype", "f32"),
        ("--dtype", "f64"),
        ("--weights", "bf16"),
        ("--backend", "reference", "--weights", "bf16"),
    ],
    ids=" ".join,
)
def test_every_backend_and_dtype_runs_a_packed_file_exactly(lluda, wide, packed, options):
    def first(model):
        printed = lluda(
            "generate", "-m", model, "--raw", "hello", "-n", 8, "-t", 0, "--json", "--logprobs", 3, *options
        )
        return json.loads(printed.out)["tokens"]

    assert first(packed) == first(wide)


def test_inspect_lists_true_shapes_and_stored_bytes(lluda, packed):
    rows = {row["name"]: row for row in json.loads(lluda("inspect", packed, "--json").out)["tensors"]}
    embedding = rows["model.embed_tokens.weight"]
    assert (embedding["shape"], embedding["dtype"]) == ([CONFIG["vocab_size"], 256], "PACKED_BF16")
    assert embedding["bytes"] < 0.85 * 2 * CONFIG["vocab_size"] * 256


def test_a_target_that_exists_is_refused(lluda, wide, packed):
    printed = lluda("pack", "-m", wide, packed)
    assert printed.code == 2
    assert len(printed.lines) == 1 and "is not empty" in printed.lines[0]


def test_what_cannot_be_packed_is_told(lluda, wide, packed, tmp_path):
    assert "packed already" in lluda("pack", "-m", packed, tmp_path / "x").err
    float32 = write_model(tmp_path / "f32", dtype="F32")
    assert "no BF16 matrix to pack" in lluda("pack", "-m", float32, tmp_path / "x").err
    printed = lluda("pack", "-m", wide, tmp_path / "x", "--threads", 0)
    assert printed.code == 2 and "threads must be a positive integer" in printed.err
    assert not (tmp_path / "x").exists()


def test_nan_in_a_packed_matrix_is_told_at_load(lluda, wide, tmp_path):
    from safetensors.torch import load_file, save_file

    from lluda.convert.pack_model import pack_model

    broken = write_model(tmp_path / "broken", WIDE)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(tensors, broken / "model.safetensors")
    report = pack_model(broken, tmp_path / "packed")
    assert report.suspicious == ["model.layers.1.mlp.up_proj.weight holds NaN or infinity"]
    printed = lluda("generate", "-m", tmp_path / "packed", "--raw", "hello", "-n", 1, "--check-tensors")
    assert printed.code == 2 and "model.layers.1.mlp.up_proj.weight holds NaN or infinity" in printed.err


def test_a_gguf_file_becomes_a_packed_folder(lluda, wide, tmp_path):
    from lluda.bench.process.gguf_copy import gguf_copy
    from lluda.config.model import ModelConfig
    from lluda.weights.checkpoint import read_config

    pytest.importorskip("gguf")
    copy = gguf_copy(wide, ModelConfig.from_hf(read_config(wide)), tmp_path)
    without = lluda("pack", "-m", copy, tmp_path / "without")
    assert without.code == 0, without.err
    assert "tokenizer is not copied" in without.err
    assert lluda("pack", "-m", copy, tmp_path / "with", "--tokenizer", wide).code == 0
    original, after = open_checkpoint(wide), open_checkpoint(tmp_path / "with")
    assert after.entries["model.layers.0.self_attn.q_proj.weight"].dtype == "PACKED_BF16"
    for name in original.entries:
        assert torch.equal(original.tensor(name).float(), after.tensor(name).float()), name
    assert answer(lluda, tmp_path / "with").out == answer(lluda, wide, "--weights", "packed").out
