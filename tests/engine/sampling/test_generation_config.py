"""What a model's generation_config.json does to its answers; its values are in test_sampling_params.py."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch

import lluda
from lluda.engine.sampling.sampler import Sampler
from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.errors import InvalidRequest, LimitExceeded, LludaError
from tests.cli.conftest import END, write_model


@pytest.fixture(scope="module")
def load(tmp_path_factory) -> Callable[..., lluda.Model]:
    """Loads one checkpoint with a generation_config.json of these keys."""
    folder = write_model(tmp_path_factory.mktemp("model"))

    def with_config(**keys: object) -> lluda.Model:
        (folder / "generation_config.json").write_text(json.dumps(keys))
        return lluda.load(folder, backend="reference")

    return with_config


@pytest.fixture(scope="module")
def free(load):
    """What the model says by itself."""
    return load().generate("hello", max_tokens=20)


def test_stop_strings_of_the_model_end_an_answer(load, free):
    stop = free.text[5:7]
    before = free.text[: free.text.index(stop)]
    model = load(stop_strings=[stop])
    assert model.generate("hello", max_tokens=20).text == before
    assert model.generate("hello", max_tokens=20).finish_reason == "stop"
    assert model.generate("hello", max_tokens=20, stop=()).text == free.text
    assert load(stop_strings=stop).generate("hello", max_tokens=20).text == before


def test_max_length_counts_prompt_and_answer_until_a_request_says_max_tokens(load, free):
    model = load(max_length=9)
    short = model.generate("hello", max_tokens=None)
    assert short.prompt_tokens + len(short.token_ids) == 9
    assert short.finish_reason == "length"
    assert model.generate("hello", max_tokens=20).token_ids == free.token_ids
    with pytest.raises(LimitExceeded, match=r"max_length .* is 9 .*; ask for a number of max_tokens instead"):
        model.generate([5] * 9)


def test_min_new_tokens_come_before_an_end(load, free):
    end = free.token_ids[2]
    first = free.token_ids.index(end) + 1
    assert len(load(eos_token_id=end).generate("hello", max_tokens=20).token_ids) == first
    longer = load(eos_token_id=end, min_new_tokens=first + 3).generate("hello", max_tokens=20)
    assert len(longer.token_ids) >= first + 3
    assert end not in longer.token_ids[: first + 2]


def test_suppressed_tokens_are_not_said(load, free):
    never = free.token_ids[0]
    assert never not in load(suppress_tokens=[never]).generate("hello", max_tokens=20).token_ids
    assert load(begin_suppress_tokens=[never]).generate("hello", max_tokens=20).token_ids[0] != never


def test_a_refused_file_is_told_before_the_weights_are_read(load, monkeypatch):
    monkeypatch.setattr("lluda.api.model.load_network", lambda *_: pytest.fail("the weights were read"))
    with pytest.raises(InvalidRequest, match=r"generation_config\.json: num_beams 4"):
        load(num_beams=4)


LOGITS = torch.tensor([0.0, 5.0, 4.0, 3.0])


def test_ends_wait_for_min_tokens_as_in_transformers():
    processor = pytest.importorskip("transformers").MinNewTokensLengthLogitsProcessor(3, 2, [1, 2])
    sampler = Sampler(SamplingParams(min_tokens=2), [], 4, end_ids=frozenset({1, 2}))
    ids = [0, 0, 0]
    for _ in range(4):
        allowed = processor(torch.tensor([ids]), LOGITS[None].clone())[0]
        assert sampler.takes_argmax == bool(torch.equal(allowed, LOGITS))
        ids.append(sampler.sample(LOGITS).id)
        assert ids[-1] == int(allowed.argmax())
    assert ids[3:] == [3, 3, 1, 1]


def test_begin_suppress_holds_for_one_token_and_suppress_for_all():
    sampler = Sampler(SamplingParams(begin_suppress_tokens=(1,), suppress_tokens=(2,)), [], 4)
    assert [sampler.sample(LOGITS).id for _ in range(2)] == [3, 1]
    assert not sampler.takes_argmax


def test_a_token_found_on_the_device_counts_too():
    sampler = Sampler(SamplingParams(min_tokens=1), [], 4, end_ids=frozenset({1}))
    assert sampler.sample(LOGITS).id == 2
    assert sampler.takes_argmax
    assert sampler.accept((1, 5.0)).id == 1


def test_ids_outside_the_vocabulary_are_refused():
    with pytest.raises(InvalidRequest, match=r"suppress_tokens holds ids from 9 to 9; .* 0 to 3"):
        Sampler(SamplingParams(suppress_tokens=(9,)), [], 4)
    with pytest.raises(LludaError, match="suppress_tokens holds all 4 tokens"):
        Sampler(SamplingParams(suppress_tokens=(0, 1, 2, 3)), [], 4)


def test_the_end_of_the_tiny_model_is_known(load):
    assert load().ends.text == (END,)
