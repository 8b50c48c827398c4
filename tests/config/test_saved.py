"""Configs as the installed transformers saves them: every number as in the form that was released."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from lluda.config.model import ModelConfig
from lluda.errors import CorruptFile

RELEASED = [
    "Qwen3-0.6B", "Qwen3-1.7B", "Qwen3-4B", "Qwen3-8B", "Qwen3-30B-A3B", "Qwen3-Omni-30B-A3B-Instruct",
]  # fmt: skip
CLASSES = {
    "qwen3": "Qwen3Config",
    "qwen3_moe": "Qwen3MoeConfig",
    "llama": "LlamaConfig",
    "qwen3_omni_moe": "Qwen3OmniMoeConfig",
}


def saved(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """``raw`` read and written by transformers."""
    (folder / "config.json").write_text(json.dumps(raw))
    getattr(transformers, CLASSES[raw["model_type"]]).from_pretrained(folder).save_pretrained(folder)
    document: dict[str, Any] = json.loads((folder / "config.json").read_text())
    assert document["transformers_version"] == transformers.__version__
    return document


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_config_saved_again_means_the_same(
    released_config: Callable[[str], dict[str, Any]], tmp_path: Path, name: str
) -> None:
    raw = released_config(name)
    again = saved(raw, tmp_path)
    assert again != raw
    assert ModelConfig.from_hf(again) == ModelConfig.from_hf(raw)


TEXT = {
    "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 96, "vocab_size": 512,
}  # fmt: skip
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
YARN = {"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0, "original_max_position_embeddings": 4096}
MADE: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("qwen3", TEXT),
    "qwen3, tied, float32": ("qwen3", {**TEXT, "tie_word_embeddings": True, "dtype": "float32"}),
    "qwen3, windows": ("qwen3", {**TEXT, "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}),
    "qwen3, yarn": ("qwen3", {**TEXT, "rope_parameters": YARN}),
    "qwen3_moe": ("qwen3_moe", {**TEXT, **EXPERTS}),
    "qwen3_moe, windows": ("qwen3_moe", {**TEXT, **EXPERTS, "use_sliding_window": True, "sliding_window": 16}),
    "qwen3_moe, dense layers": ("qwen3_moe", {**TEXT, **EXPERTS, "decoder_sparse_step": 2, "mlp_only_layers": [1]}),
    "llama": ("llama", TEXT),
    "llama, biases": ("llama", {**TEXT, "attention_bias": True, "head_dim": 32, "rms_norm_eps": 1e-5}),
}


@pytest.mark.parametrize("case", MADE)
def test_a_config_made_by_transformers_has_the_numbers_of_its_object(tmp_path: Path, case: str) -> None:
    """The right values are the attributes that transformers' own model code reads."""
    model_type, settings = MADE[case]
    config = getattr(transformers, CLASSES[model_type])(**json.loads(json.dumps(settings)))
    config.save_pretrained(tmp_path)
    text = ModelConfig.from_hf(json.loads((tmp_path / "config.json").read_text())).text
    assert_same_decoder(text, config)


LEAST = {key: value for key, value in TEXT.items() if key != "num_key_value_heads"}


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("qwen3", LEAST | {"num_key_value_heads": 2}),
        ("qwen3", LEAST | {"num_key_value_heads": None}),
        ("qwen3_moe", LEAST | EXPERTS | {"num_key_value_heads": 2}),
        ("llama", LEAST),
        ("llama", LEAST | {"head_dim": None, "num_key_value_heads": None}),
    ],
)
def test_what_a_file_leaves_out_is_what_transformers_class_has(model_type: str, settings: dict[str, Any]) -> None:
    """The file itself is read here, not what transformers would make of it."""
    config = getattr(transformers, CLASSES[model_type])(**copy.deepcopy(settings))
    assert_same_decoder(ModelConfig.from_hf(settings | {"model_type": model_type}).text, config)


def test_what_an_omni_file_leaves_out_is_what_transformers_classes_have(tmp_path: Path) -> None:
    settings = json.loads(tiny_omni().to_json_string())
    sections = [settings["thinker_config"]["text_config"], settings["talker_config"]["text_config"]]
    sections += [settings["talker_config"]["code_predictor_config"], settings["code2wav_config"]]
    for section in sections:
        for name in ("rope_parameters", "rms_norm_eps", "max_position_embeddings", "norm_topk_prob", "head_dim",
                     "tie_word_embeddings", "attention_bias", "decoder_sparse_step", "mlp_only_layers", "hidden_act",
                     "layer_types", "max_window_layers"):  # fmt: skip
            section.pop(name, None)
    for section in (settings["thinker_config"], settings["talker_config"]):
        section.pop("position_id_per_seconds")
    read = ModelConfig.from_hf(copy.deepcopy(settings))
    assert read.omni is not None and read.omni.speech is not None
    config, speech = transformers.Qwen3OmniMoeConfig(**settings), read.omni.speech
    assert_same_decoder(dataclasses.replace(read.text, tie_word_embeddings=False), config.thinker_config.text_config)
    assert_same_decoder(speech.talker.decoder, config.talker_config.text_config)
    assert_same_decoder(speech.talker.code_predictor, config.talker_config.code_predictor_config)
    config.code2wav_config.vocab_size = 40 * 4
    assert_same_decoder(speech.code2wav.transformer, config.code2wav_config)
    assert read.omni.position_id_per_seconds == config.thinker_config.position_id_per_seconds
    assert speech.talker.position_id_per_seconds == config.talker_config.position_id_per_seconds


@pytest.mark.parametrize("key", [*TEXT, *EXPERTS])
def test_a_missing_size_is_not_guessed(key: str) -> None:
    """transformers' classes have the sizes of one model each; its own files always name them."""
    settings = {"model_type": "qwen3_moe"} | TEXT | EXPERTS
    with pytest.raises(CorruptFile, match=f"{key} is missing"):
        ModelConfig.from_hf({name: value for name, value in settings.items() if name != key})


def assert_same_decoder(text: Any, config: Any) -> None:
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size",
                 "vocab_size", "max_position_embeddings", "rms_norm_eps"):  # fmt: skip
        assert getattr(text, name) == getattr(config, name), name
    assert text.head_dim == (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    assert text.attention_bias == config.attention_bias
    assert text.tie_word_embeddings == getattr(config, "tie_word_embeddings", False)
    rope = config.rope_parameters
    assert text.rope.theta == rope["rope_theta"]
    assert (text.rope.yarn.factor if text.rope.yarn else None) == rope.get("factor")
    sliding = getattr(config, "sliding_window", None)
    same = ["sliding_attention" if sliding else "full_attention"] * text.num_hidden_layers
    types = getattr(config, "layer_types", same)
    expected = [sliding if name == "sliding_attention" else None for name in types]
    assert [text.window(layer) for layer in range(text.num_hidden_layers)] == expected
    if text.moe is None:
        assert not hasattr(config, "num_experts")
        return
    for name in ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob",
                 "decoder_sparse_step"):  # fmt: skip
        assert getattr(text.moe, name) == getattr(config, name), name
    assert sorted(text.moe.mlp_only_layers) == config.mlp_only_layers


def tiny_omni() -> Any:
    """An object whose small numbers all differ from the classes' defaults, and from each other where they may."""
    thinker_rope = {"rope_type": "default", "rope_theta": 5e5, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    talker_rope = {"rope_type": "default", "rope_theta": 4e5, "mrope_section": [4, 2, 2], "interleaved": True}
    return transformers.Qwen3OmniMoeConfig(
        dtype="bfloat16",
        thinker_config={
            "text_config": {**TEXT, **EXPERTS, "rope_parameters": thinker_rope, "max_position_embeddings": 999},
            "audio_config": {
                "d_model": 32, "encoder_layers": 3, "encoder_attention_heads": 2, "encoder_ffn_dim": 40,
                "output_dim": 64, "num_mel_bins": 64, "downsample_hidden_size": 8, "n_window": 10,
                "n_window_infer": 40,
            },
            "vision_config": {
                "depth": 4, "hidden_size": 48, "num_heads": 2, "intermediate_size": 50, "out_hidden_size": 64,
                "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 2],
                "rope_parameters": {"rope_type": "axial", "rope_theta": 3e4},
            },
            "audio_end_token_id": 5, "vision_start_token_id": 6, "vision_end_token_id": 7,
            "position_id_per_seconds": 13, "tie_word_embeddings": True,
        },
        talker_config={
            "text_config": {
                **TEXT, **EXPERTS, "num_experts": 6, "rope_parameters": talker_rope, "head_dim": 16,
                "shared_expert_intermediate_size": 24, "norm_topk_prob": True,
            },
            "code_predictor_config": {
                **TEXT, "num_hidden_layers": 2, "vocab_size": 40, "num_code_groups": 4, "head_dim": 20,
                "rope_parameters": {"rope_type": "default", "rope_theta": 3e5},
            },
            "num_code_groups": 4, "thinker_hidden_size": 64, "accept_hidden_layer": 2,
            "codec_eos_token_id": 1, "codec_nothink_id": 2, "codec_think_bos_id": 3, "codec_think_eos_id": 4,
            "codec_pad_id": 5, "codec_bos_id": 6, "speaker_id": {"Ethan": 8}, "position_id_per_seconds": 13,
        },
        code2wav_config={
            "codebook_size": 40, "num_quantizers": 4, "hidden_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48, "sliding_window": 5,
            "decoder_dim": 32, "upsample_rates": [3, 2], "upsampling_ratios": [2], "rms_norm_eps": 2e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 2e4}, "max_position_embeddings": 77,
        },
    )  # fmt: skip


def test_an_omni_config_made_by_transformers_has_the_numbers_of_its_objects(tmp_path: Path) -> None:
    config = tiny_omni()
    config.save_pretrained(tmp_path)
    read = ModelConfig.from_hf(json.loads((tmp_path / "config.json").read_text()))
    omni, thinker, talker = read.omni, config.thinker_config, config.talker_config
    assert omni is not None and omni.speech is not None
    assert read.dtype == "bf16"
    assert read.eos_token_ids == (config.im_end_token_id,)
    thinker.text_config.tie_word_embeddings = thinker.tie_word_embeddings
    assert_same_decoder(read.text, thinker.text_config)
    assert_same_decoder(omni.speech.talker.decoder, talker.text_config)
    assert_same_decoder(omni.speech.talker.code_predictor, talker.code_predictor_config)
    code2wav = config.code2wav_config
    code2wav.vocab_size = code2wav.codebook_size * code2wav.num_quantizers
    assert_same_decoder(omni.speech.code2wav.transformer, code2wav)
    assert read.text.rope.mrope_section == omni.speech.talker.decoder.rope.mrope_section == (4, 2, 2)
    assert omni.speech.talker.decoder.moe.shared_expert_intermediate_size == 24
    for ours, theirs in ((omni.audio, thinker.audio_config), (omni.vision, thinker.vision_config)):
        for name in ours.__dataclass_fields__:
            value = getattr(theirs, name, None) if name != "rope_theta" else theirs.rope_parameters["rope_theta"]
            assert getattr(ours, name) == (tuple(value) if isinstance(value, list) else value), name
    for name in ("num_code_groups", "thinker_hidden_size", "accept_hidden_layer"):
        assert getattr(omni.speech.talker, name) == getattr(talker, name)
    for name in ("codebook_size", "num_quantizers", "decoder_dim"):
        assert getattr(omni.speech.code2wav, name) == getattr(code2wav, name)
    assert omni.speech.code2wav.upsample_rates == (3, 2)
    assert dict(omni.speech.talker.speakers) == {"ethan": 8}
    assert omni.position_id_per_seconds == 13
    assert (omni.tokens.audio_pad, omni.tokens.vision_end) == (thinker.audio_token_id, 7)
    assert (omni.speech.tokens.tts_pad, omni.speech.tokens.user) == (config.tts_pad_token_id, config.user_token_id)
