"""The ladder of an Omni model: every component passes against transformers, and a wrong weight is found where it is."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from lluda.engine.loading.load_options import LoadOptions
from lluda.engine.loading.model_files import ModelFiles
from lluda.errors import InvalidRequest, LimitExceeded, LludaError, OutOfMemory, UnsupportedModel
from lluda.evaluation import ladder
from lluda.evaluation.inputs import omni_input, synthetic_media
from lluda.evaluation.ladder import validate
from lluda.evaluation.validation import ValidationRequest
from lluda.models.components import COMPONENTS
from lluda.weights.checkpoint import ModelSource
from tests.evaluation.conftest import MIXES, damage, mixed_input, write_omni

__all__ = ["damage"]  # fixture

FRAMES = 6


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> ModelFiles:
    pytest.importorskip("transformers", reason="transformers is the reference here")
    return ModelFiles.find(write_omni(tmp_path_factory.mktemp("omni") / "model"))


def given_of(files, media=None, **options):
    media = synthetic_media(0) if media is None else media
    return omni_input(files.config.omni, files.config.text.vocab_size, media=media, tokens=8, **options)


def run(files, dtype="f32", given=None, **request):
    request = {"frames": FRAMES, "greedy": 8, "float64": False} | request
    return validate(files, LoadOptions(dtype=dtype), ValidationRequest(given=given or given_of(files), **request))


def test_every_component_passes_in_float32(files):
    validation = run(files)
    assert [component.component for component in validation.components] == [one.name for one in COMPONENTS]
    assert validation.passed, [threshold.describe() for threshold in validation.thresholds]
    assert validation.first_divergence is None
    stages = [f"{one.component} {stage.stage}" for one in validation.components for stage in one.stages]
    expected = [f"audio_encoder {stage}" for stage in ("features", "conv", "layers.1", "output")]
    expected += [f"vision_encoder {stage}" for stage in ("pixels", "patches", "layers.3", "deepstack.2")]
    expected += ["thinker positions", "thinker layers.4", "thinker logits"]
    expected += ["talker text_projection", "talker hidden_projection", "talker rows", "talker positions"]
    expected += ["talker layers.2", "talker logits", "code_predictor pass.1", "code_predictor pass.3"]
    expected += ["code2wav embeddings", "code2wav upsample.1", "code2wav decoder.2", "code2wav waveform"]
    assert [name for name in expected if name not in stages] == []
    greedy = {component.component: component.greedy.tokens for component in validation.components if component.greedy}
    assert greedy == {"thinker": 8, "talker": FRAMES, "code_predictor": 3 * FRAMES}


@pytest.mark.parametrize(
    ("tensor", "found"),
    [
        ("thinker.audio_tower.layers.1.fc1.weight", "audio_encoder layers.1"),
        ("thinker.visual.merger_list.1.mlp.0.weight", "vision_encoder deepstack.1"),
        ("thinker.model.layers.2.self_attn.o_proj.weight", "thinker layers.2"),
        ("talker.text_projection.linear_fc2.weight", "talker text_projection"),
        ("talker.model.layers.1.mlp.shared_expert.down_proj.weight", "talker layers.1"),
        ("talker.code_predictor.lm_head.1.weight", "code_predictor pass.2"),
        ("code2wav.decoder.2.block.2.conv1.conv.weight", "code2wav decoder.2"),
    ],
)
def test_a_wrong_weight_is_found_where_it_is_and_nowhere_else(files, damage, tensor, found):
    damage(tensor, lambda weight: weight.neg_())
    component = found.split()[0]
    validation = run(files, only=(component, *({"audio_encoder", "code2wav"} - {component})))
    assert validation.passed is False
    first, stage = validation.first_divergence
    assert f"{first.component} {stage.stage}" == found
    for other in validation.components:
        if other.component != component:
            assert all(threshold.passed for threshold in other.thresholds), other.component


@pytest.mark.parametrize("name", ["text", "video of odd rate", "two sounds and a video"])
def test_the_thinker_of_any_mix_in_chunks(files, name):
    validation = run(files, given=mixed_input(files.config, MIXES[name]), only=("thinker",), rows_per_step=50)
    (thinker,) = validation.components
    assert thinker.component == "thinker"
    assert validation.passed, [threshold.describe() for threshold in validation.thresholds]


def test_bf16_is_judged_by_its_distance_to_float64(files):
    validation = run(files, "bf16", float64=True, only=("audio_encoder", "thinker", "code_predictor", "code2wav"))
    assert [component.component for component in validation.components] == [
        *("audio_encoder", "thinker", "code_predictor", "code2wav")
    ]
    names = [threshold.name for threshold in validation.thresholds]
    assert "thinker: distance to float64, lluda / reference," in names
    assert not any("equal" in name for name in names)
    assert all(0 < component.ratio <= 1 for component in validation.components)
    assert run(files, "bf16", only=("thinker",), greedy=0).passed is None


def test_a_component_is_loaded_without_the_others(files, damage):
    damage("thinker.model.layers.0.input_layernorm.weight", lambda _: pytest.fail("the thinker was read"))
    given = given_of(files, [])
    validation = run(files, given=given, only=("talker", "code2wav"))
    assert validation.passed, [threshold.describe() for threshold in validation.thresholds]
    assert [component.component for component in validation.components] == ["talker", "code2wav"]


def test_the_document_names_corrections_and_thresholds(files):
    document = run(files, only=("talker",)).document()
    assert document["kind"] == "validation"
    assert document["media"] == ["audio", "image", "video"]
    (talker,) = document["components"]
    assert any("n_window" in text for text in talker["corrections"])
    assert all(threshold["passed"] for threshold in talker["thresholds"])
    assert talker["stages"][0]["stage"] == "text_projection"


def test_what_cannot_be_validated_is_refused(files, tmp_path, monkeypatch):
    with pytest.raises(InvalidRequest, match="component 'ear' is not one of audio_encoder, vision_encoder"):
        run(files, only=("ear",))
    with pytest.raises(InvalidRequest, match="gives the audio_encoder nothing; add --audio"):
        run(files, given=given_of(files, []), only=("audio_encoder",))
    with pytest.raises(LimitExceeded, match="exceed the context of 64"):
        validate(files, LoadOptions(dtype="f32", max_context=64), ValidationRequest(given=given_of(files)))
    mute = ModelFiles.find(write_omni(tmp_path / "mute", speaks=False))
    with pytest.raises(InvalidRequest, match="does not speak, so it has no code2wav"):
        run(mute, only=("code2wav",))
    monkeypatch.setattr(ladder.psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    with pytest.raises(OutOfMemory, match=r"transformers needs about .* for audio_encoder .*--only"):
        run(files)


@pytest.mark.parametrize("options", [{"frames": 0}, {"greedy": -1}, {"rows_per_step": 0}])
def test_numbers_out_of_range_are_refused(files, options):
    with pytest.raises(InvalidRequest, match="must be"):
        run(files, **options)


def test_a_checkpoint_the_reference_would_read_otherwise_is_refused(files, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(files.path, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["code2wav.extra.weight"] = torch.zeros(2)
    save_file(tensors, folder / "model.safetensors")
    options = LoadOptions(dtype="f32", allow_unexpected=True)
    request = ValidationRequest(given=given_of(files), only=("code2wav",), frames=FRAMES, float64=False)
    with pytest.raises(LludaError, match="Qwen3OmniMoeCode2Wav does not take these tensors"):
        validate(ModelFiles.find(folder), options, request)
    file = replace(files, source=ModelSource(folder / "model.safetensors"))
    with pytest.raises((UnsupportedModel, LludaError)):
        validate(file, options, request)
