"""YaRN in GGUF files: read with the converters' meaning of its keys, written as llama.cpp computes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lluda.config.model import ModelConfig
from lluda.convert.quantize import TypeChoice
from lluda.convert.quantize_model import quantize_model
from lluda.errors import UnsupportedModel
from lluda.evaluation.inputs import random_ids
from lluda.weights.checkpoint import read_config
from lluda.weights.gguf.names import config_from_metadata
from tests.conftest import TINY_QWEN3
from tests.convert.test_quantize import checkpoint
from tests.weights.test_gguf import keys_of

TRAINED = 64
RAW = TINY_QWEN3 | {
    "tie_word_embeddings": False,
    "max_position_embeddings": TRAINED,
    "rope_scaling": {"rope_type": "yarn", "factor": 4.0},
}
AS_CONVERTED = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 32768,
}
"""What convert_hf_to_gguf.py writes for the setting of Qwen3's model card."""


def read(**keys: Any) -> ModelConfig:
    metadata = (
        {"general.architecture": "qwen3"} | keys_of("qwen3") | {f"qwen3.{key}": value for key, value in keys.items()}
    )
    return ModelConfig.from_hf(config_from_metadata(metadata, Path("m.gguf"), tensors={}))


def yarn_of(**settings: Any) -> Any:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768, **settings}
    return ModelConfig.from_hf(TINY_QWEN3 | {"rope_scaling": scaling}).text.rope.yarn


@pytest.mark.parametrize(
    ("keys", "settings"),
    [
        ({}, {}),
        ({"rope.scaling.finetuned": False, "rope.scaling.yarn_ext_factor": 1.0}, {}),
        ({"rope.scaling.yarn_attn_factor": 1.5}, {"attention_factor": 1.5}),
        ({"rope.scaling.yarn_beta_fast": 16.0, "rope.scaling.yarn_beta_slow": 2.0}, {"beta_fast": 16, "beta_slow": 2}),
    ],
    ids=["the card's", "neutral keys", "attention factor", "betas"],
)
def test_the_keys_mean_what_the_config_said(keys: dict[str, Any], settings: dict[str, Any]) -> None:
    config = read(**AS_CONVERTED, **keys).text
    assert config.rope.yarn == yarn_of(**settings)
    assert config.max_context == 131072


def test_the_trained_length_is_the_files_context_where_it_is_not_given() -> None:
    keys = {key: value for key, value in AS_CONVERTED.items() if not key.endswith("original_context_length")}
    assert read(context_length=1000, **keys).text.max_context == 4000


@pytest.mark.parametrize("change", [{}, {"attention_factor": 1.5}], ids=["card's", "attention factor"])
def test_a_written_file_is_one_model_to_lluda_and_to_llama_cpp(tmp_path: Path, change: dict[str, Any]) -> None:
    """Logits up to four times the trained length."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (requirements/peers.txt)")
    from tests.evaluation.test_q8_parity import distance, llama_logits, lluda_logits

    raw = RAW | {"rope_scaling": RAW["rope_scaling"] | change}
    source, ids = checkpoint(tmp_path / "m", raw, dtype="F32"), random_ids(512, 4 * TRAINED, 0)
    quantize_model(source, tmp_path / "q.gguf", TypeChoice("exact"))
    found, written = (ModelConfig.from_hf(read_config(path)).text.rope.yarn for path in (source, tmp_path / "q.gguf"))
    assert found is not None and written is not None
    assert written.attention_factor == pytest.approx(found.attention_factor, rel=1e-7)
    ours = lluda_logits(tmp_path / "q.gguf", ids, dtype="f32")
    assert distance(ours, lluda_logits(source, ids, dtype="f32")) < 1e-6
    assert distance(ours, llama_logits(tmp_path / "q.gguf", ids)) < 1e-6


@pytest.mark.parametrize("change", [{"beta_fast": 16}, {"beta_slow": 2}, {"truncate": False}])
def test_what_llama_cpp_would_run_otherwise_is_not_written(tmp_path: Path, change: dict[str, Any]) -> None:
    raw = RAW | {"rope_scaling": RAW["rope_scaling"] | change}
    with pytest.raises(UnsupportedModel, match=r"llama\.cpp cannot run YaRN with other bounds"):
        quantize_model(checkpoint(tmp_path / "m", raw), tmp_path / "q.gguf", TypeChoice("bf16"))
