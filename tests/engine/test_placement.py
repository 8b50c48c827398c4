"""Components on devices of their own. ``cpu`` and ``cpu:0`` are one device to torch but two backends to lluda."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import lluda
from lluda.config import ModelConfig
from lluda.engine.loading import LoadOptions, ModelFiles
from lluda.engine.placement import COMPONENTS, Backends, component_of_parameter, read_placement
from lluda.errors import InvalidRequest
from lluda.models.build import all_parameters
from tests.cli.omni import write_speaking_omni
from tests.engine.test_spoken_conversation import GREEDY, HEARD, SPEECH, speech_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_speaking_omni(tmp_path_factory.mktemp("placed") / "tiny")


def test_a_placement_is_read_from_text_or_a_mapping():
    placed = {"thinker": "cuda:0", "code2wav": "cpu"}
    assert read_placement("thinker=cuda:0, code2wav=cpu") == read_placement(placed) == placed
    assert read_placement("") == {}


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ("ear=cpu", "component 'ear' does not exist; choose from audio_encoder"),
        ("talker", "talker has no device"),
        ("talker=", "talker has no device"),
        ("talker=cpu,talker=cpu:0", "talker is placed twice"),
    ],
)
def test_a_bad_placement_is_refused(given, rule):
    with pytest.raises(InvalidRequest, match=rule):
        LoadOptions(place=given)


def test_every_parameter_of_an_omni_model_has_its_component(folder):
    config = ModelConfig.from_hf(json.loads((folder / "config.json").read_text()))
    found = {component_of_parameter(spec.name) for spec in all_parameters(config)}
    assert found == set(COMPONENTS)
    assert component_of_parameter("model.layers.0.mlp.gate_proj.weight") == "thinker"


def test_one_backend_a_device():
    made = []
    backends = Backends("cpu", {"talker": "cpu:0"}, lambda device: made.append(device) or object())
    assert backends.of("thinker") is backends.of("code2wav")
    assert backends.of("talker") is not backends.of("thinker")
    assert made == ["cpu", "cpu:0"]


@pytest.mark.parametrize("place", ["", *(f"{component}=cpu:0" for component in COMPONENTS)])
def test_speech_is_the_same_wherever_its_components_are(folder, place):
    placed = lluda.load(folder, dtype="f32", place=place)
    expected = lluda.load(folder, dtype="f32")
    message = [{"role": "user", "content": HEARD}]
    assert speech_of(placed.speak(message, speech=SPEECH, **GREEDY)) == speech_of(
        expected.speak(message, speech=SPEECH, **GREEDY)
    )


def test_a_device_that_is_not_there_is_refused_by_name(folder):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(InvalidRequest, match="device 'cuda:0' cannot be used"):
        lluda.load(folder, place="audio_encoder=cuda:0")


def test_a_text_model_has_no_components_to_place(smollm2):
    with pytest.raises(InvalidRequest, match="for a llama model say --device"):
        lluda.load(smollm2, place={"thinker": "cpu"})


def test_the_plan_shows_each_device(folder):
    files = ModelFiles.find(folder)
    together = files.plan(LoadOptions(), speech=True)
    apart = files.plan(LoadOptions(place="talker=cpu:0,code2wav=cpu:0"), speech=True)
    assert set(apart.available) == {"cpu", "cpu:0"}
    assert apart.total == together.total == apart.total_on("cpu") + apart.total_on("cpu:0")
    moved = {row.component.split(" / ")[0] for row in apart.weights if row.device == "cpu:0"}
    assert moved == {"talker", "code2wav"}
    assert apart.kv_cache.device == "cpu"
    assert np.sign(apart.total_on("cpu:0")) == 1
