"""Well-known folders and weights that are not what lluda reads: each has a sentence of its own, with the remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lluda.engine.loading.load_options import LoadOptions
from lluda.engine.loading.loading import load_network
from lluda.engine.loading.model_files import ModelFiles
from lluda.errors import LludaError, UnsupportedModel
from lluda.weights.checkpoint import open_checkpoint
from lluda.weights.foreign_formats import foreign_files
from lluda.weights.hub.model_name import model_name
from lluda.weights.hub.sources import resolve_model
from tests.conftest import TINY_QWEN3, random_tensors

MERGE = r"merge_and_unload\(\)\.save_pretrained\(DIR\)"
FOLDERS = {
    "adapter": (["adapter_config.json", "adapter_model.safetensors"], f"LoRA or PEFT adapter; .*{MERGE}"),
    "old adapter": (["adapter_config.json", "adapter_model.bin"], f"LoRA or PEFT adapter; .*{MERGE}"),
    "deepspeed": (["latest", "zero_to_fp32.py", "global_step10"], r"DeepSpeed; .*zero_to_fp32\.py"),
    "distributed": ([".metadata", "__0_0.distcp"], "sharded training state of PyTorch; .*save_pretrained"),
    "diffusers": (["model_index.json", "diffusion_pytorch_model.safetensors"], "diffusers pipeline"),
    "onnx": (["model.onnx", "model.onnx_data"], "ONNX export; take the repository it was made from"),
    "tensorflow": (["tf_model.h5"], "TensorFlow or Flax model; take"),
    "flax": (["flax_model.msgpack"], "TensorFlow or Flax model; take"),
    "mlx": (["weights.npz"], "MLX model; take"),
    "their maker's": (["consolidated.safetensors", "params.json"], "maker's own layout; take"),
    "pickles": (["pytorch_model.bin"], "only in pickle files .*convert them to safetensors"),
    "pickles and others": (["pytorch_model.bin", "tf_model.h5"], "only in pickle files .*convert them to safetensors"),
    "GGUF": (["a-Q4_K_M.gguf", "b.gguf"], r"a-Q4_K_M\.gguf"),
}


@pytest.mark.parametrize("with_config", [True, False], ids=["config", "no config"])
@pytest.mark.parametrize(("names", "said"), FOLDERS.values(), ids=FOLDERS)
def test_a_folder_that_holds_something_else(tmp_path, names, said, with_config):
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    if with_config:
        (tmp_path / "config.json").write_text(json.dumps(TINY_QWEN3))
    elif "pickles" in said or "pickle" in said:
        said = r"has no config\.json"
    with pytest.raises(LludaError, match=said) as error:
        open_checkpoint(resolve_model(tmp_path))
    assert str(tmp_path) in str(error.value)


def test_a_repository_of_onnx_files_in_folders_is_known_too():
    assert "ONNX" in foreign_files(["config.json", "onnx/model_q4.onnx", "tokenizer.json"])
    assert foreign_files(["config.json", "model.safetensors"]) is None


def load(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(TINY_QWEN3))
    load_network(ModelFiles.find(folder), LoadOptions(dtype="f32", backend="reference"))


PREFIXES = {
    "base_model.model.": f"'base_model.model.', as in base_model.model.*: .*PEFT.*{MERGE}",
    "module.": "'module.'.*save model.module instead",
    "_orig_mod.": "'_orig_mod.'.*save model._orig_mod instead",
    "thinker.": "names begin with 'thinker.'.*rename them",
}


@pytest.mark.parametrize(("prefix", "said"), PREFIXES.items())
def test_names_with_something_before_them(tmp_path, prefix, said):
    with pytest.raises(LludaError, match=said):
        load(tmp_path, {prefix + name: values for name, values in random_tensors(TINY_QWEN3).items()})


def test_names_of_a_part_by_itself(tmp_path):
    """A thinker's decoder saved alone under the whole model's config."""
    from tests.models.test_thinker import OMNI

    (tmp_path / "config.json").write_text(json.dumps(OMNI))
    save_file({"model.embed_tokens.weight": torch.zeros(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(LludaError, match=r"lack 'thinker.', as in model\.embed_tokens\.weight: a part of a model"):
        load_network(ModelFiles.find(tmp_path), LoadOptions(dtype="f32", backend="reference"))


PROJECTION = "model.layers.0.mlp.up_proj"
STORED = {
    "lora": ([f"{PROJECTION}.lora_A.weight"], f"adapter that is not merged; .*{MERGE}"),
    "fp8": ([f"{PROJECTION}.weight_scale_inv"], "quantised to FP8; take the BF16 release"),
    "gptq or awq": ([f"{PROJECTION}.{part}" for part in ("qweight", "qzeros", "scales")], "quantised by GPTQ or AWQ"),
    "bitsandbytes": ([f"{PROJECTION}.weight.absmax", f"{PROJECTION}.weight.quant_map"], "quantised by bitsandbytes"),
    "compressed-tensors": ([f"{PROJECTION}.weight_packed"], "quantised by compressed-tensors"),
    "mlx": ([f"{PROJECTION}.scales", f"{PROJECTION}.biases"], "quantised by MLX or to MXFP4"),
}


@pytest.mark.parametrize(("names", "said"), STORED.values(), ids=STORED)
def test_weights_in_a_form_of_another_tool(tmp_path, names, said):
    tensors = random_tensors(TINY_QWEN3)
    with pytest.raises(LludaError, match=said):
        load(tmp_path, tensors | {name: torch.zeros(2) for name in names})


@pytest.mark.parametrize("key", ["quantization_config", "quantization", "compression_config"])
def test_a_config_that_says_so_is_refused_before_any_weight(tmp_path, key):
    raw = TINY_QWEN3 | {key: {"quant_method": "awq", "bits": 4}}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(UnsupportedModel, match=rf"{key} \('awq'\) is not supported; use the BF16 release"):
        ModelFiles.find(tmp_path)


def test_a_snapshot_of_the_cache_is_shown_by_its_name(tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--org--na--me"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(TINY_QWEN3))
    assert ModelFiles.find(snapshot).name == f"org/na--me@{commit}"
    for ref, content in (("v1", commit), ("pr/3", "other"), ("main", commit)):
        (repository / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
        (repository / "refs" / ref).write_text(content)
        assert model_name(snapshot) == f"org/na--me@{'main' if ref == 'main' else 'v1'}"
    assert model_name(tmp_path / "folder") == "folder"
    assert model_name(tmp_path / "a.gguf") == "a.gguf"
