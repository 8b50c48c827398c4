from __future__ import annotations

import json

import pytest

from lluda.config.model import ModelConfig, resolve_dtype
from lluda.errors import CorruptFile, InvalidRequest, UnsupportedModel
from tests.conftest import TINY_LLAMA, TINY_MIXED, TINY_MOE, TINY_QWEN3


@pytest.mark.parametrize("name", ["Qwen3-0.6B", "Qwen3-1.7B", "Qwen3-4B", "Qwen3-8B", "Qwen3-30B-A3B"])
def test_every_released_text_config_is_read(released_config, name):
    raw = released_config(name)
    text = ModelConfig.from_hf(raw).text
    assert (text.hidden_size, text.num_hidden_layers) == (raw["hidden_size"], raw["num_hidden_layers"])
    assert text.head_dim == 128
    assert text.rope.theta == 1e6
    assert text.window(0) is None
    assert text.tie_word_embeddings == raw["tie_word_embeddings"]


def test_moe_layers_follow_step_and_exceptions():
    config = ModelConfig.from_hf(TINY_MIXED | {"num_hidden_layers": 6, "mlp_only_layers": [3]}).text
    assert [config.is_sparse(layer) for layer in range(6)] == [False, True, False, False, False, True]


def test_llama_takes_its_head_dim_from_the_hidden_size_and_has_no_qk_norm():
    text = ModelConfig.from_hf(TINY_LLAMA).text
    assert text.head_dim == 32
    assert not text.use_qk_norm


def test_rope_parameters_of_newer_transformers_mean_the_same():
    raw = {key: value for key, value in TINY_QWEN3.items() if key != "rope_theta"}
    newer = raw | {"rope_parameters": {"rope_type": "default", "rope_theta": 1000000}}
    assert ModelConfig.from_hf(newer) == ModelConfig.from_hf(TINY_QWEN3)


def test_sliding_window_layers():
    raw = TINY_QWEN3 | {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}
    text = ModelConfig.from_hf(raw).text
    assert [text.window(layer) for layer in range(3)] == [None, 16, 16]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_attention_heads": 3}, "multiple of num_key_value_heads"),
        ({"head_dim": 0}, "head_dim"),
        ({"head_dim": -1}, "head_dim"),
        ({"head_dim": 33}, "even"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_hidden_layers": True}, "integer"),
        ({"hidden_size": "64"}, "integer"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"rope_theta": "1e6"}, "rope_theta"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"tie_word_embeddings": "yes"}, "true or false"),
        ({"eos_token_id": -1}, "eos_token_id"),
        ({"layer_types": ["full_attention"]}, "every layer"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_a5_a_value_outside_its_rule_names_field_and_value(change, words):
    with pytest.raises(CorruptFile, match=words):
        ModelConfig.from_hf(TINY_QWEN3 | change, "config.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "mamba"}, "supported: qwen3, qwen3_moe, llama"),
        ({"model_type": None}, "not supported"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "never runs such code"),
        ({"model_file": "evil.py"}, "never runs such code"),
        ({"attn_softcap": 30.0}, "attn_softcap.*--allow-unknown-config"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, "linear.*supported: default .*yarn"),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "dynamic"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "llama3"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "longrope"),
        ({"rope_scaling": {"rope_type": "default", "factor": 4.0}}, "factor"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"quantization_config": {"quant_method": "fp8"}}, r"quantization_config \('fp8'\) is not supported"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_a4_a6_what_is_not_implemented_is_refused_by_name(change, words):
    with pytest.raises(UnsupportedModel, match=words):
        ModelConfig.from_hf(TINY_QWEN3 | change, "config.json")


def test_a6_unknown_key_may_be_allowed():
    raw = TINY_QWEN3 | {"attn_softcap": 30.0}
    assert ModelConfig.from_hf(raw, allow_unknown=True) == ModelConfig.from_hf(TINY_QWEN3)


def test_more_chosen_experts_than_there_are():
    with pytest.raises(CorruptFile, match="num_experts_per_tok 9 exceeds num_experts 8"):
        ModelConfig.from_hf(TINY_MOE | {"num_experts_per_tok": 9})


def test_config_is_hashable_and_frozen():
    config = ModelConfig.from_hf(json.loads(json.dumps(TINY_MOE)))
    assert hash(config) == hash(ModelConfig.from_hf(TINY_MOE))
    with pytest.raises(AttributeError):
        config.text.hidden_size = 1  # type: ignore[misc]


def test_dtype_policy():
    assert resolve_dtype("auto", "bf16") == "bf16"
    assert resolve_dtype("f64", "bf16") == "f64"
    assert ModelConfig.from_hf(TINY_QWEN3 | {"torch_dtype": "float16"}).dtype == "f32"
    with pytest.raises(InvalidRequest, match="f16"):
        resolve_dtype("f16", "bf16")
