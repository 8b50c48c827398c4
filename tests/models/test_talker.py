"""Talker and code predictor against transformers, on a small config of the released form."""

from __future__ import annotations

import copy

import pytest
import torch

from lluda.backends import select_backend
from lluda.backends.batch import Segment
from lluda.config.reader import ConfigReader
from lluda.config.talker import read_talker
from lluda.engine.kv_cache import CacheOptions, KVCache
from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.engine.speech.speech_params import code_predictor_sampling
from lluda.errors import CorruptFile, NativeLibraryError, UnsupportedModel
from lluda.models.code_predictor import CodePredictor, code_predictor_parameters
from lluda.models.talker import Talker, talker_parameters
from tests.models.omni_reference import load_reference, placed_parameters, random_parameters

TALKER = {
    "model_type": "qwen3_omni_moe_talker",
    "accept_hidden_layer": 2,
    "spatial_merge_size": 2,
    "num_code_groups": 4,
    "thinker_hidden_size": 48,
    "codec_bos_id": 81,
    "codec_eos_token_id": 82,
    "codec_pad_id": 80,
    "codec_nothink_id": 83,
    "codec_think_bos_id": 84,
    "codec_think_eos_id": 85,
    "speaker_id": {"Chelsie": 86, "ethan": 87},
    "text_config": {
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 40,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 32,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "vocab_size": 96,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000,
        "rope_scaling": {"interleaved": True, "mrope_section": [4, 2, 2], "rope_type": "default", "type": "default"},
    },
    "code_predictor_config": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 48,
        "num_code_groups": 4,
        "vocab_size": 64,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000,
        "rope_scaling": None,
    },
}


def config(**changes):
    return read_talker(ConfigReader(TALKER | changes, "config.json: talker_config"))


@pytest.fixture(scope="module")
def tensors():
    return random_parameters([*talker_parameters(config()), *code_predictor_parameters(config())])


@pytest.fixture(scope="module")
def reference(tensors):
    pytest.importorskip("transformers", reason="transformers is the reference here")
    from transformers.models.qwen3_omni_moe import configuration_qwen3_omni_moe as configs
    from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as models

    raw = configs.Qwen3OmniMoeTalkerConfig(**copy.deepcopy(TALKER))
    return load_reference(models.Qwen3OmniMoeTalkerForConditionalGeneration(raw), tensors, "talker.")


def cache_of(decoder_config):
    return KVCache(decoder_config, CacheOptions(256, dtype="f32"), torch.device("cpu"))


@torch.inference_mode()
def test_rows_positions_and_logits_are_those_of_transformers(tensors, reference):
    backend = select_backend("reference", "cpu", "f32")
    talker = Talker(config(), placed_parameters(talker_parameters(config()), tensors, backend), backend)
    rows = torch.randn(21, 64)
    positions = torch.randint(0, 30, (3, 21)).float()
    hidden, logits = talker(
        rows.clone(), positions, [Segment(0, 21, cache_of(talker.config.decoder))], torch.arange(21)
    )
    expected = reference.model(inputs_embeds=rows[None], position_ids=positions[:, None]).last_hidden_state[0]
    torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits, reference.codec_head(expected), rtol=1e-4, atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["text_projection", "hidden_projection"])
def test_projections_are_those_of_transformers(tensors, reference, name):
    backend = select_backend("reference", "cpu", "f32")
    talker = Talker(config(), placed_parameters(talker_parameters(config()), tensors, backend), backend)
    rows = torch.randn(5, 48)
    torch.testing.assert_close(getattr(talker, name)(rows), getattr(reference, name)(rows), rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_every_pass_of_the_code_predictor_is_that_of_transformers(tensors, reference):
    backend = select_backend("reference", "cpu", "f32")
    specs = list(code_predictor_parameters(config()))
    predictor = CodePredictor(config(), placed_parameters(specs, tensors, backend), backend)
    theirs = reference.code_predictor
    cache, past = cache_of(predictor.config), None
    rows = torch.randn(2, 64)
    for group in range(1, 4):
        count = len(rows)
        positions = torch.arange(cache.length, cache.length + count)
        logits = predictor(rows.clone(), positions, [Segment(0, count, cache)], group)
        cache.advance(count)
        output = theirs.model(inputs_embeds=rows[None], past_key_values=past, use_cache=True)
        past = output.past_key_values
        expected = theirs.lm_head[group - 1](output.last_hidden_state[0, -1:])
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
        code = logits.argmax(-1)
        rows = predictor.embed(group, code)
        assert torch.equal(rows, theirs.get_input_embeddings()[group - 1](code))


@pytest.mark.parametrize("temperature", [0.9, 0.0])
def test_the_code_predictor_is_sampled_as_transformers_samples_it(reference, monkeypatch, temperature):
    """transformers' talker hands its predictor the values in a call; one step of it records them."""
    asked = {}

    def recorded(**arguments):
        asked.update(arguments)
        raise StopIteration

    monkeypatch.setattr(reference.code_predictor, "generate", recorded)
    with pytest.raises(StopIteration):
        reference.generate(
            inputs_embeds=torch.randn(1, 3, 64), trailing_text_hidden=torch.zeros(1, 1, 64),
            tts_pad_embed=torch.zeros(1, 1, 64), talker_input_ids=torch.zeros(1, 3, dtype=torch.long),
            do_sample=bool(temperature), max_new_tokens=3, output_hidden_states=True, return_dict_in_generate=True,
        )  # fmt: skip
    ours = code_predictor_sampling(SamplingParams(temperature=temperature, seed=7))
    assert asked["do_sample"] == bool(ours.temperature)
    assert ours.seed == 7
    if temperature:
        # No temperature is passed: transformers' default of 1 holds.
        assert "temperature" not in asked
        assert (ours.temperature, ours.top_k, ours.top_p) == (1.0, asked["top_k"], asked["top_p"]) == (1.0, 50, 0.8)


def test_every_released_name_is_consumed(released_config, released_configs):
    import json

    talker = read_talker(ConfigReader(released_config("Qwen3-Omni-30B-A3B-Instruct")["talker_config"], "config.json"))
    index = released_configs / "Qwen3-Omni-30B-A3B-Instruct" / "model.safetensors.index.json"
    released = {name for name in json.loads(index.read_text())["weight_map"] if name.startswith("talker.")}
    specs = [*talker_parameters(talker), *code_predictor_parameters(talker)]
    assert {spec.name for spec in specs} == released
    assert sum(spec.elements for spec in specs) == 3_324_596_480
    assert talker.speakers == {"chelsie": 2301, "ethan": 2302, "aiden": 2303}


def test_speakers_are_named_in_lower_case():
    assert dict(config().speakers) == {"chelsie": 86, "ethan": 87}


@pytest.mark.parametrize(
    ("changes", "error", "rule"),
    [
        ({"speaker_id": {}}, CorruptFile, "at least one speaker"),
        ({"speaker_id": {"x": 96}}, CorruptFile, "x must be from 0 to 95"),
        ({"codec_bos_id": 96}, CorruptFile, "codec_bos_id must be from 0 to 95"),
        ({"text_config": None}, CorruptFile, "text_config is missing"),
        ({"mystery": 1}, UnsupportedModel, "mystery"),
        ({"num_code_groups": 1}, CorruptFile, "num_code_groups"),
        ({"code_predictor_config": TALKER["code_predictor_config"] | {"hidden_size": 32}}, CorruptFile, "talker's 64"),
    ],
)
def test_a_section_outside_its_rules_is_refused(changes, error, rule):
    with pytest.raises(error, match=rule):
        config(**changes)


@torch.inference_mode()
@pytest.mark.parametrize("rows", [1, 21])
def test_the_cpu_backend_computes_shared_experts_too(tensors, rows):
    try:
        backend = select_backend("cpu", "cpu", "bf16")
    except NativeLibraryError as error:
        pytest.skip(str(error))
    specs = list(talker_parameters(config()))
    # Of rows drawn otherwise one may be undecided between two experts.
    x, logits = torch.randn(rows, 64, generator=torch.Generator().manual_seed(0)), {}
    for each in (backend, select_backend("reference", "cpu", "f32")):
        talker = Talker(config(), placed_parameters(specs, tensors, each), each)
        segments = [Segment(0, rows, cache_of(talker.config.decoder))]
        logits[each.name] = talker(x.clone(), torch.arange(rows), segments, torch.arange(rows))[1].float()
    difference = (logits["cpu"] - logits["reference"]).norm() / logits["reference"].norm()
    assert difference < 0.03
