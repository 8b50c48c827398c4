"""Settings on the command line that make a reduced model from a released config."""

from __future__ import annotations

import copy
import json

import pytest

from lluda.convert.synth import override_config
from lluda.errors import InvalidRequest
from tests.conftest import RELEASED_CONFIGS

TEXT = {
    "num_hidden_layers": 28,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "sliding_window": None,
    "eos_token_id": [1, 2],
}
OMNI = {
    "model_type": "qwen3_omni_moe",
    "thinker_config": {
        "text_config": {"num_hidden_layers": 48, "rope_scaling": {"mrope_section": [24, 20, 20]}},
        "audio_config": {"encoder_layers": 32},
    },
    "talker_config": {
        "text_config": {"num_hidden_layers": 20},
        "code_predictor_config": {"num_hidden_layers": 3, "layer_types": ["a", "b", "c"]},
    },
    "code2wav_config": {"num_hidden_layers": 8},
}


@pytest.mark.parametrize(
    ("setting", "key", "value"),
    [
        ("num_hidden_layers=4", "num_hidden_layers", 4),
        ("text.num_hidden_layers=4", "num_hidden_layers", 4),
        (" text.num_hidden_layers = 4 ", "num_hidden_layers", 4),
        ("rms_norm_eps=1e-5", "rms_norm_eps", 1e-5),
        ("rms_norm_eps=1", "rms_norm_eps", 1),
        ("hidden_act=gelu", "hidden_act", "gelu"),
        ('hidden_act="a=b"', "hidden_act", "a=b"),
        ("tie_word_embeddings=false", "tie_word_embeddings", False),
        ("sliding_window=128", "sliding_window", 128),
        ("num_hidden_layers=null", "num_hidden_layers", None),
        ("eos_token_id=[3]", "eos_token_id", [3]),
        ("+new_key=1", "new_key", 1),
        ("+eos_token_id=7", "eos_token_id", 7),
    ],
)
def test_a_value_of_a_text_config(setting, key, value):
    result = override_config(TEXT, [setting])
    assert result == {**TEXT, key: value}
    assert type(result[key]) is type(value)


@pytest.mark.parametrize(
    ("setting", "path"),
    [
        ("text.num_hidden_layers=2", "thinker_config.text_config.num_hidden_layers"),
        ("thinker.text.num_hidden_layers=2", "thinker_config.text_config.num_hidden_layers"),
        ("thinker_config.text_config.num_hidden_layers=2", "thinker_config.text_config.num_hidden_layers"),
        ("audio.encoder_layers=2", "thinker_config.audio_config.encoder_layers"),
        ("talker.text.num_hidden_layers=2", "talker_config.text_config.num_hidden_layers"),
        ("code2wav.num_hidden_layers=2", "code2wav_config.num_hidden_layers"),
        ("text.rope_scaling.mrope_section=[1]", "thinker_config.text_config.rope_scaling.mrope_section"),
        ("+text.rope_scaling.fresh.deep=true", "thinker_config.text_config.rope_scaling.fresh.deep"),
        ("+fresh.section.key=x", "fresh.section.key"),
    ],
)
def test_a_path_of_omni_reaches_its_section_and_no_other(setting, path):
    before = copy.deepcopy(OMNI)
    result = override_config(OMNI, [setting])
    assert before == OMNI
    expected = before
    *sections, key = path.split(".")
    for section in sections:
        expected = expected.setdefault(section, {})
    text = setting.partition("=")[2]
    expected[key] = text if text == "x" else json.loads(text)
    assert result == before


def test_settings_apply_in_turn():
    settings = ["num_hidden_layers=4", "+extra.a=1", "extra.a=2", "num_hidden_layers=5"]
    assert override_config(TEXT, settings) == {**TEXT, "num_hidden_layers": 5, "extra": {"a": 2}}


@pytest.mark.parametrize(("layers", "kinds"), [(2, ["a", "b"]), (5, ["a", "b", "c", "c", "c"]), (3, ["a", "b", "c"])])
def test_layer_types_follow_the_number_of_layers(layers, kinds):
    result = override_config(OMNI, [f"code_predictor.num_hidden_layers={layers}"])
    assert result["talker_config"]["code_predictor_config"] == {"num_hidden_layers": layers, "layer_types": kinds}


def test_layer_types_that_were_set_by_hand_stay():
    settings = ['code_predictor.layer_types=["x"]', "code_predictor.num_hidden_layers=1"]
    result = override_config(OMNI, settings)
    assert result["talker_config"]["code_predictor_config"]["layer_types"] == ["x"]


def test_null_becomes_a_section_only_when_insisted_on():
    with pytest.raises(InvalidRequest, match="is no section but None"):
        override_config(TEXT, ["sliding_window.size=1"])
    assert override_config(TEXT, ["+sliding_window.size=1"])["sliding_window"] == {"size": 1}


@pytest.mark.parametrize(
    ("setting", "found"),
    [
        ("num_hidden_layers", "must be PATH=VALUE"),
        ("=4", "must be PATH=VALUE"),
        ("", "must be PATH=VALUE"),
        ("a..b=4", "must be PATH=VALUE"),
        ("+=4", "must be PATH=VALUE"),
        ("num_hiden_layers=4", "no 'num_hiden_layers' there; beside it are num_hidden_layers, "),
        ("text.layers=4", "no 'layers' there"),
        ("audio.encoder_layers=4", "no 'audio' there"),
        ("num_hidden_layers.x=4", "num_hidden_layers is no section but 28"),
        ("+num_hidden_layers.x=4", "num_hidden_layers is no section but 28"),
        ("num_hidden_layers=four", "must be a number, as 28 is; got 'four'"),
        ("num_hidden_layers=True", "must be a number, as 28 is; got 'True'"),
        ("tie_word_embeddings=True", "must be true or false, as True is; got 'True'"),
        ("tie_word_embeddings=0", "must be true or false"),
        ("eos_token_id=5", "must be a list"),
        ("hidden_act=5", "must be a string"),
        ("rms_norm_eps=NaN", "not finite"),
        ("rms_norm_eps=1e999", "not finite"),
        ("eos_token_id=[-Infinity]", "not finite"),
        ("eos_token_id=[1", "not valid JSON"),
        ("eos_token_id=" + "[" * 100_000, "not valid JSON"),
        ("num_hidden_layers=" + "9" * 5000, "must be a number"),
    ],
    ids=lambda text: text[:30],
)
def test_a_bad_setting_is_refused_with_its_name_and_neighbours(setting, found):
    with pytest.raises(InvalidRequest) as caught:
        override_config(TEXT, [setting])
    message = str(caught.value)
    assert message.startswith("--set ")
    assert found in message
    assert len(message) < 500


def test_a_slip_of_the_keyboard_does_not_fill_the_memory():
    result = override_config(OMNI, ["code_predictor.num_hidden_layers=1000000000"])
    assert len(result["talker_config"]["code_predictor_config"]["layer_types"]) < 100_000


def test_the_released_omni_config_is_reduced_in_each_part():
    raw = json.loads((RELEASED_CONFIGS / "Qwen3-Omni-30B-A3B-Instruct" / "config.json").read_text())
    settings = [
        "text.num_hidden_layers=2",
        "audio.encoder_layers=2",
        "vision.depth=2",
        "talker.text.num_hidden_layers=2",
        "code_predictor.num_hidden_layers=2",
        "code2wav.num_hidden_layers=2",
    ]
    result = override_config(raw, settings)
    assert result["thinker_config"]["text_config"]["num_hidden_layers"] == 2
    assert result["thinker_config"]["audio_config"]["encoder_layers"] == 2
    assert result["thinker_config"]["vision_config"]["depth"] == 2
    assert result["talker_config"]["text_config"]["num_hidden_layers"] == 2
    assert len(result["talker_config"]["code_predictor_config"]["layer_types"]) == 2
    assert result["code2wav_config"]["num_hidden_layers"] == 2


@pytest.mark.parametrize(("given", "stored"), [("num_experts", "num_local_experts"), ("dtype", "torch_dtype")])
@pytest.mark.parametrize("mark", ["", "+"])
def test_a_key_is_known_by_the_name_of_either_transformers(given, stored, mark):
    for ask, have in ((given, stored), (stored, given)):
        assert override_config({have: 8}, [f"{mark}{ask}=4"]) == {have: 4}
