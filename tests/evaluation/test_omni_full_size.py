"""The thresholds of the Omni model at the widths of the released one, on seeded random weights. Minutes and gigabytes.

* The thinker: 4 of 48 layers with all 128 experts and the whole vocabulary, encoders of a few layers.
* Talker, code predictor and code2wav whole: 3.3 and 0.2 billion parameters, beside a thinker of one layer.

One side of one component is in memory at a time; 20 GB must be free.
"""

from __future__ import annotations

import shutil

import pytest

from lluda.config.model import ModelConfig
from lluda.convert.synth import override_config, synthesize
from lluda.engine.loading.load_options import LoadOptions
from lluda.engine.loading.model_files import ModelFiles
from lluda.evaluation.inputs import omni_input, synthetic_media
from lluda.evaluation.ladder import validate
from lluda.evaluation.lluda_components import LludaComponents, LludaDecoder, position_rows
from lluda.evaluation.trace import release_memory
from lluda.evaluation.transformers_components import TransformersComponents, TransformersDecoder
from lluda.evaluation.validation import ValidationRequest
from lluda.models.build import all_parameters
from tests.evaluation.conftest import MIXES, mixed_input

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

NAME = "Qwen3-Omni-30B-A3B-Instruct"
SMALL_ENCODERS = (
    "thinker_config.audio_config.encoder_layers=2",
    "thinker_config.audio_config.num_hidden_layers=2",
    "thinker_config.vision_config.depth=4",
    "thinker_config.vision_config.deepstack_visual_indexes=[0,1,2]",
)
THINKER = (*SMALL_ENCODERS, "thinker_config.text_config.num_hidden_layers=4", "enable_audio_output=false")
SPEECH = (
    *SMALL_ENCODERS,
    "thinker_config.text_config.num_hidden_layers=1",
    "thinker_config.text_config.num_experts=8",
    "talker_config.accept_hidden_layer=1",
)
GREEDY = 32


def made(folder, raw, changes):
    pytest.importorskip("transformers", reason="transformers is the reference here")
    raw = override_config(raw, changes)
    synthesize(all_parameters(ModelConfig.from_hf(raw)), folder, config=raw)
    return ModelFiles.find(folder)


@pytest.fixture(scope="module")
def released(released_configs):
    from lluda.files.json_file import read_json_object

    return read_json_object(released_configs / NAME / "config.json")


@pytest.fixture(scope="module")
def thinker(released, tmp_path_factory):
    folder = tmp_path_factory.mktemp("thinker") / "model"
    yield made(folder, released, THINKER)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def speech(released, tmp_path_factory):
    folder = tmp_path_factory.mktemp("speech") / "model"
    yield made(folder, released, SPEECH)
    shutil.rmtree(folder)


def run(files, dtype, only, **request):
    config = files.config
    given = omni_input(config.omni, config.text.vocab_size, media=synthetic_media(0))
    validation = validate(files, LoadOptions(dtype=dtype), ValidationRequest(given=given, only=only, **request), print)
    for threshold in validation.thresholds:
        print(threshold.describe())
    return validation


def test_thinker_at_released_widths_in_float32(thinker):
    """12 mixes of media: positions equal, logits within 1e-3 of their range, 32 greedy tokens equal."""
    ours = LludaComponents(thinker, LoadOptions(dtype="f32", max_context=4096))
    prompts = []
    for mix in MIXES.values():
        given = mixed_input(thinker.config, mix)
        media = ours.prepare(given)
        prompts.append((media, ours.prompt(given, media, ours.audio_encoder(media), ours.vision_encoder(media))))
    outcomes = [*_outcomes(ours.decoder(prompts[0][1]).network, ours, prompts)]
    release_memory()
    reference = TransformersComponents(thinker.path, "f32", float64=False)
    module = reference.decoder().module
    worst = 0.0
    for (media, prompt), (logits, tokens) in zip(prompts, outcomes, strict=True):
        assert (position_rows(prompt) - reference.positions(prompt.ids, media)).abs().max() <= 1e-3
        expected, others = _outcome(TransformersDecoder(module["decoder"], module["head"], prompt, axes=3), prompt)
        worst = max(worst, float((logits - expected).abs().max() / (expected.max() - expected.min())))
        assert others == tokens
    print(f"largest logit error / range {worst:.3g} over {len(prompts)} prompts, all {GREEDY} greedy tokens equal")
    assert 0 < worst <= 1e-3


def _outcomes(causal_lm, ours, prompts):
    for _, prompt in prompts:
        yield _outcome(LludaDecoder(causal_lm, ours.cache_options, "f32", prompt), prompt)


def _outcome(implementation, prompt):
    """Logits of every fifth row of the prompt (all would be gigabytes), and the greedy tokens after it."""
    step, tokens = implementation.start(), []
    logits = step(prompt.ids)
    row, logits = logits[-1], logits[::5].clone()
    for _ in range(GREEDY):
        tokens.append(int(row.argmax()))
        row = step(tokens[-1:])[-1]
    return logits, tokens


def test_thinker_at_released_widths_in_bf16(thinker):
    validation = run(thinker, "bf16", ("thinker",), greedy=0)
    assert validation.passed, [threshold.describe() for threshold in validation.thresholds]
    assert 0 < validation.components[0].ratio <= 1


def test_talker_and_code_predictor_in_float32(speech):
    """All 16 codes of 40 frames equal, logits within 1e-3 of their range; the prompt's rows and positions too."""
    validation = run(speech, "f32", ("talker", "code_predictor"), frames=40, float64=False)
    assert validation.passed, [threshold.describe() for threshold in validation.thresholds]
    assert [component.greedy.tokens for component in validation.components] == [40, 600]


def test_talker_and_code_predictor_in_bf16(speech):
    validation = run(speech, "bf16", ("talker", "code_predictor"), frames=40)
    assert all(0 < component.ratio <= 1 for component in validation.components)


def test_code2wav_as_synthesised_is_a_waveform(speech):
    """Not one that is clipped nearly everywhere; 40 frames in float32 against transformers' forward."""
    validation = run(speech, "f32", ("code2wav",), frames=40, float64=False)
    assert validation.passed, [threshold.describe() for threshold in validation.thresholds]
    waveform = validation.components[0].ends[0]
    assert 0.01 < waveform.mean_abs_value < 0.5
