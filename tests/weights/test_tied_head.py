"""tie_word_embeddings, and what a checkpoint stores all the same: the stored head counts, as in transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lluda.backends.batch import Segment
from lluda.config.model import ModelConfig
from lluda.convert.pack_model import pack_model
from lluda.convert.quantize import TypeChoice
from lluda.convert.quantize_model import quantize_model
from lluda.engine.kv_cache import CacheOptions, KVCache
from lluda.engine.loading.load_options import LoadOptions
from lluda.engine.loading.loading import load_network, load_speech_stack
from lluda.engine.loading.model_files import ModelFiles
from lluda.models.build import all_parameters
from lluda.weights.checkpoint import open_checkpoint
from lluda.weights.tied_weights import same_values, stored_alike
from tests.conftest import TINY_LLAMA, TINY_MOE, TINY_QWEN3, random_tensors
from tests.engine.speech.test_speech import config as omni_config
from tests.models.omni_reference import random_parameters

TIED = {"qwen3": TINY_QWEN3, "qwen3_moe": TINY_MOE | {"tie_word_embeddings": True}, "llama": TINY_LLAMA}
IDS = torch.arange(3, 20)
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
FLOAT32 = LoadOptions(dtype="f32", backend="reference")


def write(folder: Path, raw: dict, stored: str, dtype=torch.float32, prefix: str = "") -> Path:
    """A tied checkpoint that stores a head of ``stored`` values: other, equal, or the head alone."""
    folder.mkdir()
    config = ModelConfig.from_hf(raw)
    tensors = random_parameters(all_parameters(config)) if config.omni else random_tensors(raw)
    tensors.pop(f"{prefix}{HEAD}", None)
    table = tensors[f"{prefix}{EMBEDDING}"]
    tensors[f"{prefix}{HEAD}"] = table.flip(0).contiguous() if stored == "other" else table.clone()
    if stored == "head alone":
        del tensors[f"{prefix}{EMBEDDING}"]
    save_file(
        {name: values.to(dtype) for name, values in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    (folder / "config.json").write_text(json.dumps(raw | {"torch_dtype": str(dtype).removeprefix("torch.")}))
    return folder


@torch.inference_mode()
def logits_of(path: Path):
    network, report = load_network(ModelFiles.find(path), FLOAT32)
    cache = KVCache(network.config, CacheOptions(64, dtype="f32"), torch.device("cpu"))
    return network(IDS, torch.arange(len(IDS)), [Segment(0, len(IDS), cache)], None), report


@torch.inference_mode()
@pytest.mark.parametrize("stored", ["other", "equal", "head alone"])
@pytest.mark.parametrize("raw", TIED.values(), ids=TIED)
def test_logits_are_those_of_transformers_on_the_same_files(tmp_path, raw, stored):
    transformers = pytest.importorskip("transformers", reason="transformers is the reference here")
    path = write(tmp_path / "model", raw, stored)
    reference = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    logits, report = logits_of(path)
    torch.testing.assert_close(logits, reference(IDS[None]).logits[0], rtol=1e-4, atol=1e-4)
    assert (HEAD in report.tied) is (stored != "other")
    assert report.stored_twice == ((HEAD,) if stored == "equal" else ())


def test_another_head_is_said_aloud_and_planned(tmp_path, caplog):
    path = write(tmp_path / "model", TINY_QWEN3, "other")
    files = ModelFiles.find(path)
    assert files.config.text.tie_word_embeddings is False
    assert "the stored one is used, as transformers does" in caplog.text
    assert "the stored one is used" in load_network(files, FLOAT32)[1].describe()
    equal = ModelFiles.find(write(tmp_path / "equal", TINY_QWEN3, "equal"))
    assert equal.notices == ()
    table = TINY_QWEN3["vocab_size"] * TINY_QWEN3["hidden_size"]
    assert files.plan(FLOAT32).parameters == equal.plan(FLOAT32).parameters + table


@pytest.mark.parametrize("stored", ["other", "equal", "head alone"])
def test_packed_and_quantised_ones_keep_the_head(tmp_path, stored):
    path = write(tmp_path / "model", TINY_QWEN3, stored, torch.bfloat16)
    expected = logits_of(path)[0]
    pack_model(path, tmp_path / "packed")
    quantize_model(path, tmp_path / "exact.gguf", TypeChoice("exact"))
    for made in ("packed", "exact.gguf"):
        torch.testing.assert_close(logits_of(tmp_path / made)[0], expected, rtol=1e-5, atol=1e-5)
    with open_checkpoint(tmp_path / "exact.gguf") as checkpoint:
        assert (HEAD in checkpoint.entries) is (stored == "other")


@pytest.mark.parametrize("stored", ["other", "equal", "head alone"])
def test_a_tied_thinker(tmp_path, stored):
    """The names of transformers 5.23's Qwen3OmniMoeThinkerForConditionalGeneration, which ties the same two."""
    raw = omni_config()
    raw["thinker_config"]["tie_word_embeddings"] = raw["thinker_config"]["text_config"]["tie_word_embeddings"] = True
    files = ModelFiles.find(write(tmp_path / "model", raw, stored, prefix="thinker."))
    network, report = load_network(files, FLOAT32)
    assert (f"thinker.{HEAD}" in report.tied) is (stored != "other")
    assert bool(files.notices) is (stored == "other")
    table, head = network.decoder.embed_tokens.weight.values, network.lm_head.values
    assert torch.equal(head, table.flip(0) if stored == "other" else table)
    assert load_speech_stack(files, FLOAT32).talker.config.thinker_hidden_size == 64


def test_values_are_compared_piece_by_piece_and_across_types(monkeypatch):
    monkeypatch.setattr("lluda.weights.tied_weights._PIECE", 3)
    values = torch.randn(4, 5).bfloat16()
    for other in (values.clone(), values.float(), values.double()):
        assert same_values(values, other)
        other[3, 4] += 1
        assert not same_values(values, other)
    assert not same_values(values, values.reshape(5, 4))
    nan = torch.tensor([float("nan")])
    assert same_values(nan, nan.clone())


def test_block_formats_are_compared_as_they_are_stored(tmp_path):
    path = write(tmp_path / "model", TINY_QWEN3 | {"tie_word_embeddings": False}, "equal", torch.bfloat16)
    quantize_model(path, tmp_path / "q8.gguf", TypeChoice("q8_0"))
    quantize_model(path, tmp_path / "mixed.gguf", TypeChoice("q8_0", {"text/lm_head": "bf16"}))
    for name, alike in (("q8.gguf", True), ("mixed.gguf", False)):
        assert stored_alike(open_checkpoint(tmp_path / name), EMBEDDING, HEAD) is alike


def test_a_gguf_file_with_the_table_twice_holds_it_once(tmp_path):
    """GGUF's config follows from the list of tensors: output.weight is there, so it is not tied by its name alone."""
    path = write(tmp_path / "model", TINY_QWEN3 | {"tie_word_embeddings": False}, "equal", torch.bfloat16)
    quantize_model(path, tmp_path / "twice.gguf", TypeChoice("exact"))
    network, report = load_network(ModelFiles.find(tmp_path / "twice.gguf"), FLOAT32)
    assert network.lm_head is network.decoder.embed_tokens.weight
    assert report.stored_twice == (HEAD,)
    other = write(tmp_path / "other", TINY_QWEN3 | {"tie_word_embeddings": False}, "other", torch.bfloat16)
    quantize_model(other, tmp_path / "other.gguf", TypeChoice("exact"))
    torch.testing.assert_close(logits_of(tmp_path / "other.gguf")[0], logits_of(other)[0], rtol=1e-5, atol=1e-5)
