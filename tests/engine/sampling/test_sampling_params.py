"""Requests completed by the defaults of a released generation_config.json."""

from __future__ import annotations

import json

import pytest

from lluda.engine.sampling.generation_config import DONE, IGNORED, REFUSED
from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.errors import InvalidRequest
from tests.conftest import RELEASED_CONFIGS

QWEN3 = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "eos_token_id": [151645, 151643]}


def test_the_models_values_fill_what_was_not_asked():
    params = SamplingParams(top_p=0.5, seed=3).with_defaults(QWEN3)
    assert (params.temperature, params.top_k, params.top_p, params.min_p) == (0.6, 20, 0.5, 0.0)
    assert (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) == (1.0, 0.0, 0.0)
    assert (params.seed, params.max_tokens, params.logprobs) == (3, None, None)


def test_without_a_file_the_answer_is_greedy():
    params = SamplingParams().with_defaults({})
    assert (params.temperature, params.top_k, params.top_p, params.repetition_penalty) == (0.0, 0, 1.0, 1.0)


@pytest.mark.parametrize("config", [{"temperature": 0.6}, {"do_sample": False, "temperature": 1}, {"do_sample": None}])
def test_a_model_that_does_not_say_do_sample_is_greedy(config):
    assert SamplingParams().with_defaults(config).temperature == 0.0


def test_a_temperature_asked_for_takes_the_other_values_of_a_greedy_model():
    params = SamplingParams(temperature=0.7).with_defaults({"temperature": 0.6, "top_k": 20})
    assert (params.temperature, params.top_k) == (0.7, 20)
    assert SamplingParams(temperature=0.7).with_defaults({}).top_k == 0


def test_do_sample_brings_the_defaults_of_transformers():
    transformers = pytest.importorskip("transformers", reason="transformers is the reference here")
    theirs = transformers.GenerationConfig(do_sample=True)._get_default_generation_params()
    ours = SamplingParams().with_defaults({"do_sample": True})
    assert ours.temperature == theirs["temperature"]
    assert ours.top_k == theirs["top_k"]
    assert ours.top_p == theirs["top_p"]


def test_zero_is_a_value_and_not_a_missing_one():
    params = SamplingParams(temperature=0, top_k=0, top_p=0, seed=0).with_defaults(QWEN3)
    assert (params.temperature, params.top_k, params.top_p, params.seed) == (0.0, 0, 0.0, 0)


def test_the_repetition_penalty_and_length_of_the_model_hold_for_greedy_too():
    params = SamplingParams().with_defaults({"repetition_penalty": 1.05, "max_new_tokens": 77})
    assert (params.temperature, params.repetition_penalty, params.max_tokens) == (0.0, 1.05, 77)


def test_one_stop_string_is_wrapped():
    assert SamplingParams(stop="\n").stop == ("\n",)  # type: ignore[arg-type]
    assert SamplingParams(stop=["a", "b"], stop_token_ids=[5]).stop == ("a", "b")  # type: ignore[arg-type]


def test_a_bias_is_kept_as_pairs():
    params = SamplingParams(logit_bias={5: 1, 2: -3}).with_defaults({})
    assert params.logit_bias == ((5, 1.0), (2, -3.0))
    assert hash(params) == hash(SamplingParams(logit_bias=((5, 1), (2, -3.0))).with_defaults({}))


def test_equal_requests_are_equal_and_hashable():
    assert hash(SamplingParams(temperature=1, stop=["a"])) == hash(SamplingParams(temperature=1.0, stop=("a",)))


MATTERING = {
    **dict.fromkeys(("token_healing",), True),
    **{key: [[1, 2]] for key in ("bad_words_ids", "constraints", "force_words_ids", "sequence_bias")},
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "max_time", "min_length", "num_beams"), 7),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "num_beam_groups", "top_h"), 3),
    **dict.fromkeys(("typical_p", "epsilon_cutoff", "eta_cutoff", "guidance_scale", "penalty_alpha"), 0.5),
    **dict.fromkeys(("encoder_repetition_penalty", "diversity_penalty"), 1.3),
    "assistant_early_exit": 4,
    "dola_layers": "low",
    "exponential_decay_length_penalty": [10, 1.2],
    "num_return_sequences": 2,
    "watermarking_config": {"greenlist_ratio": 0.25},
}
"""A value of each key that is refused, with which transformers would generate something else."""


def test_every_key_of_transformers_is_done_refused_or_changes_no_token():
    """The keys are those of the installed transformers, so that a new one fails here until it is looked at."""
    transformers = pytest.importorskip("transformers", reason="transformers is the reference here")
    theirs = transformers.GenerationConfig().to_dict()
    assert theirs.keys() - DONE.keys() - REFUSED.keys() - IGNORED == set()
    assert len(DONE) + len(REFUSED) + len(IGNORED) == len({*DONE, *REFUSED, *IGNORED})
    assert SamplingParams().with_defaults(theirs) == SamplingParams().with_defaults({})
    assert MATTERING.keys() == REFUSED.keys()


@pytest.mark.parametrize("key", REFUSED)
def test_a_method_that_is_not_there_is_refused_by_name_and_its_neutral_values_pass(key):
    with pytest.raises(InvalidRequest, match=f"{key} .* asks for a method that is not implemented"):
        SamplingParams().with_defaults({key: MATTERING[key]})
    for harmless in (None, *REFUSED[key]):
        SamplingParams().with_defaults({key: harmless})


def test_stop_strings_of_the_model_hold_until_the_request_has_its_own():
    config = {"stop_strings": "###", "min_new_tokens": 3, "max_length": 50, "suppress_tokens": [7]}
    params = SamplingParams().with_defaults(config)
    assert (params.stop, params.min_tokens, params.max_length, params.suppress_tokens) == (("###",), 3, 50, (7,))
    assert SamplingParams(stop=["a"]).with_defaults(config).stop == ("a",)  # type: ignore[arg-type]
    assert SamplingParams(stop=()).with_defaults(config).stop == ()
    assert SamplingParams().with_defaults({"stop_strings": ["a", "b"]}).stop == ("a", "b")


def test_every_released_file_is_read():
    files = sorted(RELEASED_CONFIGS.glob("*/generation_config*.json"))
    assert files
    for file in files:
        raw = json.loads(file.read_text())
        params = SamplingParams().with_defaults(raw)
        assert params.temperature == (raw["temperature"] if raw.get("do_sample") else 0.0)
        assert params.max_tokens == raw.get("max_new_tokens")
