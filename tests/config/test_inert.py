"""Keys that change nothing are taken in every section of a config.json; others are refused, and the advised way past
works in every section."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lluda.config.model import ModelConfig
from lluda.errors import UnsupportedModel
from tests.conftest import TINY_LLAMA, TINY_MOE, TINY_QWEN3

OMNI = "Qwen3-Omni-30B-A3B-Instruct"
NOT_SECTIONS = ("id2label", "label2id", "pruned_heads", "speaker_id")
"""Objects that are values: maps of labels and of speakers' names."""

WRITTEN_BY_TOOLS = {
    "unsloth_version": "2025.11.1",
    "unsloth_fixed": True,
    "_attn_implementation_autoset": True,
    "_attn_implementation": "flash_attention_2",
    "_commit_hash": "0123",
    "attn_implementation": "sdpa",
    "experts_implementation": "grouped_mm",
    "neftune_noise_alpha": 5,
    "use_mrope": False,
    "quantization_config": None,
    "quantization": {},
    "auto_map": None,
    "pruned_heads": {},
    "per_layer_config": None,
    "use_flash_attn": True,
    "use_liger_kernel": True,
    "gradient_checkpointing": True,
    "embd_pdrop": 0.1,
    "hidden_dropout": 0.0,
    "resid_pdrop": 0.1,
    "classifier_dropout": None,
    "loss_type": "ForCausalLM",
    "max_model_len": 131072,
    "model_max_length": 4096,
    "model_name": "org/name",
    "base_model_name_or_path": "org/name",
    "num_labels": 1,
    "some_future_key": None,
}
"""As seen in fine-tunes of unsloth, axolotl, LLaMA-Factory, TRL, mergekit and MS-Swift, and their neutral values."""


def keys_of_transformers() -> dict[str, Any]:
    """All that the installed transformers' base classes write into any config, and what 4.x wrote of generation."""
    from transformers import GenerationConfig, PreTrainedConfig

    return PreTrainedConfig().to_dict() | GenerationConfig._get_default_generation_params()


def sections(raw: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of ``raw`` and of every object in it."""
    yield path
    for key, value in raw.items():
        if isinstance(value, dict) and key not in NOT_SECTIONS:
            yield from sections(value, (*path, key))


def changed(raw: dict[str, Any], path: tuple[str, ...], keys: dict[str, Any]) -> dict[str, Any]:
    """``raw`` with ``keys`` in one section, whatever stands there already kept."""
    result = copy.deepcopy(raw)
    section = result
    for name in path:
        section = section[name]
    section.update({key: value for key, value in keys.items() if key not in section})
    return result


@pytest.fixture
def models(released_config: Callable[[str], dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """A config of each model type, with the sections of transformers 4 and 5."""
    newer = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    omni = released_config(OMNI)
    saved = copy.deepcopy(omni)
    saved["thinker_config"]["vision_config"]["rope_parameters"] = {"rope_type": "axial", "rope_theta": 1e4}
    saved["code2wav_config"] |= newer
    text = saved["talker_config"]["text_config"]
    text["rope_parameters"] = text.pop("rope_scaling")
    return {
        "qwen3": TINY_QWEN3 | newer,
        "qwen3_moe": TINY_MOE | {"rope_scaling": {"type": "default"}},
        "llama": TINY_LLAMA,
        "omni": omni,
        "omni of transformers 5": saved,
    }


def test_what_transformers_and_training_tools_write_changes_nothing_in_any_section(
    models: dict[str, dict[str, Any]],
) -> None:
    harmless = keys_of_transformers() | WRITTEN_BY_TOOLS
    for name, raw in models.items():
        config = ModelConfig.from_hf(raw)
        for path in sections(raw):
            assert ModelConfig.from_hf(changed(raw, path, harmless)) == config, (name, path)


def test_an_unknown_key_is_refused_in_every_section_and_the_advice_of_the_message_works(
    models: dict[str, dict[str, Any]],
) -> None:
    tried = 0
    for name, raw in models.items():
        config = ModelConfig.from_hf(raw)
        for path in sections(raw):
            strange = changed(raw, path, {"attn_softcap": 30.0})
            with pytest.raises(UnsupportedModel, match=r"attn_softcap; pass --allow-unknown-config") as caught:
                ModelConfig.from_hf(strange)
            assert ": ".join(path) in str(caught.value)
            assert ModelConfig.from_hf(strange, allow_unknown=True) == config, (name, path)
            tried += 1
    assert tried >= 5 + 2 * 9 + 3


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("quantization_config", {"quant_method": "fp8"}),
        ("quantization", {"bits": 4, "group_size": 64}),
        ("compression_config", {"format": "pack-quantized"}),
        ("pruned_heads", {"0": [1]}),
        ("per_layer_config", {"0": {"num_attention_heads": 2}}),
        ("use_mrope", True),
    ],
)
def test_what_does_change_the_maths_is_refused_in_every_section_and_not_let_past(
    models: dict[str, dict[str, Any]], key: str, value: Any
) -> None:
    for raw in models.values():
        for path in sections(raw):
            section = changed(raw, path, {})
            target = section
            for name in path:
                target = target[name]
            target[key] = value
            with pytest.raises(UnsupportedModel, match=rf"{key} .*is not supported"):
                ModelConfig.from_hf(section, allow_unknown=True)
