"""Sampling values that cannot be: each gives one InvalidRequest with field, rule and value."""

from __future__ import annotations

import math

import pytest

from lluda.engine.sampling.sampler import Sampler
from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.errors import InvalidRequest

WRONG_TYPES = ["0.5", True, [1], {}, 1j, b"1", object()]

NUMBERS = {
    "temperature": [-0.1, 100.1, math.nan, math.inf, -math.inf, 10**400],
    "top_p": [-0.01, 1.01, math.nan, math.inf],
    "min_p": [-0.01, 1.01, math.nan, -math.inf],
    "repetition_penalty": [0, 0.0099, -1.0, 101, math.nan, math.inf],
    "presence_penalty": [-2.01, 2.01, math.nan],
    "frequency_penalty": [-2.01, 2.01, math.nan],
}
INTEGERS = {
    "top_k": [-1, 1 << 31, 1.5, 2.0, math.nan],
    "seed": [-1, 1 << 64, 0.5, 10**5000],
    "max_tokens": [0, -5, 1 << 31, 1.5, math.inf],
    "max_length": [0, 1 << 31, 1.5],
    "min_tokens": [-1, 1 << 31, 0.5],
    "logprobs": [-1, 65, 1.0, True],
}
OTHERS = {
    "stop": ["", [""], ["ok", ""], [1], [None], 7, {"a": 1}, ["x"] * 65],
    "stop_token_ids": [5, [-1], [1.5], [True], ["1"], "12", [1 << 31], [0] * 65],
    "suppress_tokens": [5, [-1], ["1"], [True], [1 << 31]],
    "begin_suppress_tokens": ["12", [None]],
    "ignore_eos": [1, 0, "true", None],
}

CASES = [
    pytest.param(field, value, id=f"{field}-{type(value).__name__}-{index}")
    for family in (NUMBERS, INTEGERS, OTHERS)
    for field, values in family.items()
    for index, value in enumerate([*values, *(WRONG_TYPES if family is not OTHERS else [])])
]


@pytest.mark.parametrize(("field", "value"), CASES)
def test_a_bad_value_names_field_and_rule(field, value):
    with pytest.raises(InvalidRequest) as caught:
        SamplingParams(**{field: value})
    message = str(caught.value)
    assert message.startswith(f"{field} must ")
    assert "; got " in message
    assert "\n" not in message
    assert len(message) < 300


def test_the_message_has_the_value_and_the_range():
    with pytest.raises(InvalidRequest, match=r"^temperature must be a number from 0 to 100; 0 is greedy; got -1$"):
        SamplingParams(temperature=-1)
    with pytest.raises(InvalidRequest, match="got nan"):
        SamplingParams(top_p=math.nan)
    with pytest.raises(InvalidRequest, match="got an integer of 16610 bits"):
        SamplingParams(seed=10**5000)


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ([], "list"),
        ({"do_sample": "yes"}, "do_sample must be true or false; got 'yes'"),
        ({"do_sample": 1}, "do_sample must be true or false; got 1"),
        ({"do_sample": True, "temperature": -1}, "temperature must be a number"),
        ({"do_sample": True, "temperature": "0.6"}, "got '0.6'"),
        ({"temperature": math.nan}, "temperature must be a number"),
        ({"top_k": 20.5}, "top_k must be an integer"),
        ({"top_p": 3}, "top_p must be a number"),
        ({"repetition_penalty": 0}, "repetition_penalty must be a number"),
        ({"max_new_tokens": -1}, "max_new_tokens must be an integer"),
        ({"num_beams": 4}, "num_beams 4 asks for a method that is not implemented"),
        ({"typical_p": 0.9}, "typical_p 0.9"),
        ({"bad_words_ids": [[1]]}, "bad_words_ids"),
        ({"no_repeat_ngram_size": {}}, "no_repeat_ngram_size"),
        ({"num_beams": True}, "num_beams True"),
        ({"stop_strings": 5}, "stop_strings must be a string or a list of strings; got 5"),
        ({"stop_strings": ["a", ""]}, "stop_strings must hold strings that are not empty"),
        ({"min_new_tokens": "3"}, "min_new_tokens must be an integer"),
        ({"max_length": 0}, "max_length must be an integer from 1"),
        ({"suppress_tokens": [-1]}, "suppress_tokens must hold integers"),
    ],
)
def test_a_bad_generation_config_is_named(config, found):
    with pytest.raises(InvalidRequest) as caught:
        SamplingParams().with_defaults(config)
    assert str(caught.value).startswith("generation_config.json: ")
    assert found in str(caught.value)


def test_harmless_values_of_methods_that_are_not_implemented_pass():
    SamplingParams().with_defaults({"num_beams": 1, "typical_p": 1.0, "suppress_tokens": [], "min_length": 0})


def test_a_negative_prompt_id_is_refused():
    with pytest.raises(InvalidRequest, match="must not be negative; got -3"):
        Sampler(SamplingParams(repetition_penalty=1.1), [5, -3], 10)
