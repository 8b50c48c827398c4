"""Components on devices of their own. ``cpu`` and ``cpu:0`` are one device to torch but two backends to lluda."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import lluda
from lluda.backends.backend import Precision
from lluda.backends.reference.backend import ReferenceBackend
from lluda.config.model import ModelConfig
from lluda.engine.loading.load_options import LoadOptions
from lluda.engine.loading.model_files import ModelFiles
from lluda.engine.loading.placement import Backends, component_of_parameter, read_placement
from lluda.errors import InvalidRequest
from lluda.models.build import all_parameters, expert_parameters, text_parameters
from lluda.models.components import COMPONENTS
from tests.cli.conftest import write_model
from tests.cli.omni import write_speaking_omni
from tests.conftest import TINY_MOE, TINY_QWEN3
from tests.engine.speech.test_spoken_conversation import GREEDY, HEARD, SPEECH, speech_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_speaking_omni(tmp_path_factory.mktemp("placed") / "tiny")


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """A text model with a dense layer between two of experts."""
    sparse = {key: value for key, value in TINY_MOE.items() if TINY_QWEN3.get(key) != value} | {"mlp_only_layers": [1]}
    return write_model(tmp_path_factory.mktemp("mixture") / "tiny", sparse)


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
    assert found == {component.name for component in COMPONENTS}
    assert component_of_parameter("model.layers.0.mlp.gate_proj.weight") == "thinker"


def test_one_backend_a_device():
    made = []
    backends = Backends("cpu", {"talker": "cpu:0"}, lambda device: made.append(device) or object())
    assert backends.of("thinker") is backends.of("code2wav")
    assert backends.of("talker") is not backends.of("thinker")
    assert made == ["cpu", "cpu:0"]


def test_experts_are_with_the_thinker_unless_they_are_placed():
    names = frozenset({"model.layers.0.mlp.gate.weight"})
    backends = Backends("cpu", {"thinker": "cpu:0"}, lambda _: object(), names)
    assert backends.of("experts") is backends.of("thinker") is backends.of_parameter(*names)
    apart = Backends("cpu", {"thinker": "cpu:0", "experts": "cpu"}, lambda _: object(), names)
    assert apart.of("experts") is apart.of("talker") is apart.of_parameter(*names)
    assert apart.of("experts") is not apart.of("thinker")


def test_experts_are_the_mixture_blocks_with_their_norms(mixture):
    config = ModelFiles.find(mixture).config
    experts = {spec.name for spec in expert_parameters(config)}
    assert len(experts) == 2 * (2 + 3 * 8)
    rest = {spec.name for spec in text_parameters(config)} - experts
    assert "model.layers.0.post_attention_layernorm.weight" in experts
    assert "model.layers.1.post_attention_layernorm.weight" in rest
    assert not [name for name in rest if ".experts." in name or ".gate." in name]


@pytest.mark.parametrize("place", ["", "experts=cpu:0", *(f"{component.name}=cpu:0" for component in COMPONENTS)])
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


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_answers_are_the_same_with_the_experts_apart(mixture, dtype):
    placed = lluda.load(mixture, dtype=dtype, place="experts=cpu:0", prefill_chunk=3)
    expected = lluda.load(mixture, dtype=dtype, prefill_chunk=3)
    prompts = [[5, 9, 2, 7, 4], [1, 3]]
    answers = [
        [list(m.stream(prompt, temperature=0, max_tokens=6))[-1] for prompt in prompts] for m in (placed, expected)
    ]
    assert [answer.token_ids for answer in answers[0]] == [answer.token_ids for answer in answers[1]]
    logits = [model.runner.prefill(prompts[0], model.runner.new_cache()) for model in (placed, expected)]
    torch.testing.assert_close(*logits, rtol=0, atol=0)
    assert not placed.network.on_one_device
    assert "; experts: cpu backend" in placed.describe() or "; experts: reference backend" in placed.describe()
    assert "experts:" not in expected.describe()


def test_work_on_the_host_waits_for_the_gpu_on_the_reference_backend_too(monkeypatch):
    told = []
    stream = SimpleNamespace(synchronize=lambda: told.append("waited"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: stream)
    for device in ("cuda", "cpu"):
        ReferenceBackend(torch.device(device), Precision.of("f32")).host_callback(lambda: told.append("worked"))
    assert told == ["waited", "worked", "worked"]


def test_experts_on_the_thinker_s_device_change_nothing(mixture):
    model = lluda.load(mixture, place="experts=cpu")
    assert model.network.on_one_device
    assert model.describe() == lluda.load(mixture).describe()


def test_experts_that_are_not_there_are_refused(tmp_path, mixture):
    dense = write_model(tmp_path / "dense")
    with pytest.raises(InvalidRequest, match="this qwen3 model has no experts; leave experts= out"):
        lluda.load(dense, place="experts=cpu:0")
    with pytest.raises(InvalidRequest, match="device 'gpu' cannot be used"):
        lluda.load(mixture, place="experts=gpu")
    with pytest.raises(InvalidRequest, match="for a qwen3_moe model say --device"):
        lluda.load(mixture, place="thinker=cpu,experts=cpu:0")


def test_a_gpu_computes_more_rows_of_a_prompt_at_once(mixture):
    chunks = {
        "cpu": LoadOptions(),
        "cuda": LoadOptions(device="cuda"),
        "cuda:1": LoadOptions(place="thinker=cuda:1"),
        "apart": LoadOptions(device="cuda", place={"experts": "cpu"}),
        "thinker": LoadOptions(device="cuda", place="thinker=cpu"),
        "given": LoadOptions(device="cuda", prefill_chunk=7),
    }
    assert [options.prefill_rows for options in chunks.values()] == [512, 8192, 8192, 8192, 512, 7]
    files = ModelFiles.find(mixture)
    plans = [files.plan(LoadOptions(prefill_chunk=rows)).activations for rows in (None, 512, 7)]
    assert plans[0] == plans[1] != plans[2]
    assert plans[2].component == "activations, 7 rows"
    assert "prompts in chunks of 7" in lluda.load(mixture, prefill_chunk=7).describe()


def test_the_plan_of_experts_apart_adds_up(folder, mixture):
    for path, speech in ((mixture, False), (folder, True)):
        files = ModelFiles.find(path)
        together = files.plan(LoadOptions(), speech=speech)
        apart = files.plan(LoadOptions(place="experts=cpu:0"), speech=speech)
        assert (apart.parameters, apart.total) == (together.parameters, together.total)
        moved = [row for row in apart.weights if row.device == "cpu:0"]
        assert sum(row.parameters for row in moved) == sum(spec.elements for spec in expert_parameters(files.config))
        assert {row.component.split(" / ")[0] for row in moved} == {"thinker" if speech else "text"}


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
