"""One setting under two names: combined as the installed transformers does, or refused with both names."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest

from lluda.config.model import ModelConfig
from lluda.errors import CorruptFile, LludaError
from tests.config.test_saved import CLASSES
from tests.conftest import TINY_LLAMA, TINY_MOE, TINY_QWEN3

OMNI = "Qwen3-Omni-30B-A3B-Instruct"
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
DEFAULT = {"rope_type": "default", "rope_theta": 5e5}

ROPE: dict[str, dict[str, Any]] = {
    "theta beside": {"rope_theta": 3e5},
    "theta in rope_scaling": {"rope_scaling": DEFAULT},
    "theta in rope_parameters": {"rope_parameters": DEFAULT},
    "theta in both places": {"rope_parameters": DEFAULT, "rope_theta": 3e5},
    "no theta at all": {"rope_theta": None},
    "an empty rope_scaling": {"rope_parameters": DEFAULT, "rope_scaling": {}},
    "an empty rope_parameters": {"rope_parameters": {}, "rope_scaling": YARN},
    "a null rope_scaling": {"rope_parameters": YARN | {"rope_theta": 2e5}, "rope_scaling": None},
    "both the same": {"rope_parameters": YARN, "rope_scaling": YARN},
    "yarn over default": {"rope_parameters": DEFAULT | {"rope_theta": 3e5}, "rope_scaling": YARN, "rope_theta": 3e5},
    "yarn with its theta over default": {"rope_parameters": DEFAULT, "rope_scaling": YARN | {"rope_theta": 3e5}},
    "older name of the kind": {"rope_scaling": {"type": "yarn", "factor": 2.0}},
    "both names of the kind, the same": {"rope_scaling": {"type": "yarn", "rope_type": "yarn", "factor": 2.0}},
    "default under the older name": {"rope_scaling": {"type": "default", "rope_type": "yarn", "factor": 2.0}},
    "yarn under the older name": {"rope_scaling": {"rope_type": "default", "type": "yarn"}},
    "factor 1 of no kind": {"rope_scaling": {"rope_type": "default", "factor": 1.0}},
    "linear, factor 1": {"rope_scaling": {"rope_type": "linear", "factor": 1.0}},
    "trained length beside": {"rope_scaling": YARN, "original_max_position_embeddings": 128},
}


@pytest.mark.parametrize("raw", [TINY_QWEN3, TINY_MOE, TINY_LLAMA], ids=["qwen3", "qwen3_moe", "llama"])
@pytest.mark.parametrize("change", ROPE.values(), ids=ROPE)
def test_rotary_settings_are_combined_as_transformers_combines_them(
    raw: dict[str, Any], change: dict[str, Any]
) -> None:
    """The right values are those that transformers' model would compute with."""
    import transformers

    raw = {key: value for key, value in (raw | change).items() if key != "rope_theta" or value is not None}
    config = getattr(transformers, CLASSES[raw["model_type"]])(**copy.deepcopy(raw))
    config.standardize_rope_params()  # as its rotary module does before it computes
    expected = config.rope_parameters
    rope = ModelConfig.from_hf(raw).text.rope
    assert rope.theta == expected["rope_theta"]
    scaled = (rope.yarn.factor, rope.yarn.original_max_position_embeddings) if rope.yarn else None
    if expected["rope_type"] != "yarn":
        assert scaled is None
    else:
        assert scaled == (expected["factor"], expected["original_max_position_embeddings"])


@pytest.mark.parametrize(
    "change",
    [
        {"rope_parameters": DEFAULT, "rope_scaling": YARN, "rope_theta": None},
        {"rope_parameters": DEFAULT, "rope_scaling": YARN, "rope_theta": 3e5},
        {"rope_parameters": YARN | {"attention_factor": 2.0}, "rope_scaling": YARN},
    ],
    ids=["a lost theta", "another theta beside", "a lost attention factor"],
)
def test_a_rope_scaling_that_drops_a_setting_of_rope_parameters_is_refused_with_both_names(
    change: dict[str, Any],
) -> None:
    """transformers 5.23 takes rope_scaling alone and falls back on theta 10000; no model was trained so."""
    with pytest.raises(CorruptFile, match="rope_parameters and rope_scaling"):
        ModelConfig.from_hf(TINY_QWEN3 | change)


def test_settings_by_layer_type_are_refused_as_transformers_own_model_refuses_them() -> None:
    import transformers

    raw = TINY_QWEN3 | {"rope_parameters": {"full_attention": YARN, "sliding_attention": DEFAULT}}
    with pytest.raises((KeyError, AttributeError)):
        transformers.Qwen3Model(transformers.Qwen3Config(**copy.deepcopy(raw)))
    with pytest.raises(LludaError, match="settings by layer type, \\['full_attention', 'sliding_attention'\\]"):
        ModelConfig.from_hf(raw)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"dtype": "float32", "torch_dtype": "bfloat16"}, "f32"),
        ({"dtype": "bfloat16", "torch_dtype": "float32"}, "bf16"),
        ({"dtype": None, "torch_dtype": "float32"}, "f32"),
        ({"dtype": "float16"}, "f32"),
        ({}, "bf16"),
    ],
)
def test_dtype_wins_over_torch_dtype(names: dict[str, Any], expected: str) -> None:
    """As in transformers; the last case is lluda's own: transformers looks at the tensors."""
    import transformers

    raw = {key: value for key, value in TINY_QWEN3.items() if key != "torch_dtype"} | names
    assert ModelConfig.from_hf(raw).dtype == expected
    theirs = str(transformers.Qwen3Config(**raw).dtype).removeprefix("torch.")
    assert expected == {"bfloat16": "bf16", "None": "bf16"}.get(theirs, "f32")


def test_an_omni_configs_dtype_may_stand_in_its_thinker(released_config: Callable[[str], dict[str, Any]]) -> None:
    raw = released_config(OMNI)
    raw["dtype"], raw["thinker_config"]["dtype"] = None, "float32"
    assert ModelConfig.from_hf(raw).dtype == "f32"
    del raw["thinker_config"]["dtype"]
    raw["thinker_config"]["text_config"]["torch_dtype"] = "float16"
    assert ModelConfig.from_hf(raw).dtype == "f32"
    raw["torch_dtype"] = "bfloat16"
    assert ModelConfig.from_hf(raw).dtype == "bf16"


def test_an_omni_config_may_name_its_end_in_its_thinker(released_config: Callable[[str], dict[str, Any]]) -> None:
    """A thinker that was trained by itself says it where transformers' text config does; all that are named end."""
    raw = released_config(OMNI)
    turn = ModelConfig.from_hf(raw).eos_token_ids
    thinker = raw["thinker_config"]
    thinker["text_config"]["eos_token_id"] = 7
    assert ModelConfig.from_hf(raw).eos_token_ids == (*turn, 7)
    thinker["eos_token_id"], raw["eos_token_id"] = [8, 7], 9
    assert ModelConfig.from_hf(raw).eos_token_ids == (*turn, 9, 8, 7)
    assert ModelConfig.from_hf(thinker | {"model_type": "qwen3_omni_moe_thinker"}).eos_token_ids == (8, 7)


PAIRS = {
    "": [],
    "thinker_config.text_config": [("num_experts", "num_local_experts", 7)],
    "thinker_config.text_config.rope_scaling": [("mrope_interleaved", "interleaved", False)],
    "thinker_config.audio_config": [
        ("encoder_layers", "num_hidden_layers", 7),
        ("d_model", "hidden_size", 640),
        ("encoder_attention_heads", "num_attention_heads", 10),
        ("encoder_ffn_dim", "intermediate_size", 640),
    ],
    "thinker_config.vision_config": [
        ("depth", "num_hidden_layers", 30),
        ("num_heads", "num_attention_heads", 8),
        ("in_channels", "in_chans", 1),
        ("patch_size", "spatial_patch_size", 8),
    ],
    "talker_config.text_config": [("num_experts", "num_local_experts", 7)],
    "talker_config.text_config.rope_scaling": [("interleaved", "mrope_interleaved", False)],
}
CASES = [(path, *pair) for path, pairs in PAIRS.items() for pair in pairs]


@pytest.mark.parametrize(("path", "key", "other", "value"), CASES, ids=[f"{case[0]}.{case[2]}" for case in CASES])
def test_two_names_of_one_number(
    released_config: Callable[[str], dict[str, Any]], path: str, key: str, other: str, value: Any
) -> None:
    """Either name alone, both the same, and a refusal with both names where they differ."""
    raw = released_config(OMNI)
    expected = ModelConfig.from_hf(raw)

    def reading(**names: Any) -> ModelConfig:
        document = copy.deepcopy(raw)
        section = document
        for name in path.split("."):
            section = section[name]
        for name in (key, other):
            section.pop(name, None)
        section.update(names)
        return ModelConfig.from_hf(document)

    section = raw
    for name in path.split("."):
        section = section[name]
    released = section[key]
    assert reading(**{key: released}) == reading(**{other: released}) == expected
    assert reading(**{key: released, other: released}) == expected
    with pytest.raises(CorruptFile) as caught:
        reading(**{key: released, other: value})
    assert re.search(rf"\b{key}\b.*\b{other}\b", str(caught.value)) or re.search(
        rf"\b{other}\b.*\b{key}\b", str(caught.value)
    )


@pytest.mark.parametrize(("thinker", "text", "tied"), [
    (None, None, False), (True, None, True), (False, None, False), (None, True, True), (False, True, False),
    (True, False, True),
])  # fmt: skip
def test_the_thinkers_switch_of_tied_embeddings_wins_over_its_texts(
    released_config: Callable[[str], dict[str, Any]], thinker: bool | None, text: bool | None, tied: bool
) -> None:
    """transformers 5.23 looks at the thinker's, 4.57 at the text's."""
    raw = released_config(OMNI)
    raw["thinker_config"]["tie_word_embeddings"] = thinker
    raw["thinker_config"]["text_config"]["tie_word_embeddings"] = text
    assert ModelConfig.from_hf(raw).text.tie_word_embeddings is tied


def test_the_vision_encoders_base_is_read_from_every_place(released_config: Callable[[str], dict[str, Any]]) -> None:
    """transformers makes "default", which 4.x wrote, "axial"."""
    from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeVisionEncoderConfig

    for names in (
        {},
        {"rope_theta": 2e4},
        {"rope_scaling": {"rope_type": "default", "rope_theta": 3e4}},
        {"rope_parameters": {"type": "default", "rope_theta": 3e4}},
        {"rope_parameters": {"rope_type": "axial"}, "rope_theta": 5e4},
        {"rope_parameters": {"rope_type": "axial", "rope_theta": 6e4}, "rope_scaling": {}},
    ):
        raw = released_config(OMNI)
        raw["thinker_config"]["vision_config"] |= copy.deepcopy(names)
        expected = Qwen3OmniMoeVisionEncoderConfig(**copy.deepcopy(names)).rope_parameters
        assert expected["rope_type"] == "axial"
        omni = ModelConfig.from_hf(raw).omni
        assert omni is not None and omni.vision.rope_theta == expected["rope_theta"], names
    raw["thinker_config"]["vision_config"]["rope_scaling"] = {"rope_type": "axial", "rope_theta": 1e4}
    with pytest.raises(CorruptFile, match="rope_parameters and rope_scaling"):
        ModelConfig.from_hf(raw)


def test_numbers_that_two_components_must_share(released_config: Callable[[str], dict[str, Any]]) -> None:
    raw = released_config(OMNI)
    raw["talker_config"]["spatial_merge_size"] = 3
    with pytest.raises(
        CorruptFile, match=r"talker_config: spatial_merge_size must be the vision encoder's 2 .*found 3"
    ):
        ModelConfig.from_hf(raw)
    raw["talker_config"] |= {"spatial_merge_size": None}
    raw["talker_config"]["code_predictor_config"]["num_code_groups"] = 8
    with pytest.raises(CorruptFile, match=r"code_predictor_config: num_code_groups must be the talker's 16 .*found 8"):
        ModelConfig.from_hf(raw)
