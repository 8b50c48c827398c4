"""Requests that a model makes for a server: their ends, choices, and what of an answer is not spoken."""

from __future__ import annotations

import pytest

import lluda
from lluda.engine.request import Completion, SpeechChunk, SpeechCompletion, Token
from lluda.engine.speech.frames import FrameGenerator
from lluda.errors import InvalidRequest
from lluda.inputs.chat.chat_options import ChatOptions

QUESTION = [{"role": "user", "content": "What is this?"}]
SPEECH = lluda.SpeechParams(sampling=lluda.SamplingParams(temperature=0.9, seed=1), max_frames=12)
PARAMS = lluda.SamplingParams(temperature=0, max_tokens=40)


@pytest.fixture(scope="module")
def model():
    return lluda.load("tiny-omni", threads=1)


@pytest.fixture(scope="module")
def prompt(model):
    return model.read_prompt(QUESTION, ChatOptions())[0]


def spoken(model, prompt, *tokens, ends=True):
    """The events of an answer of just these tokens, spoken."""
    ids = [number for token in tokens for number in model.tokenizer.encode(token)]
    constraint = model.grammars.lark("start: " + " ".join(f"<[{number}]>" for number in ids))
    request = model.request(prompt, PARAMS, spoken=True, speech=SPEECH, constraint=constraint)
    events = list(model.engine.submit(request))
    assert [event.id for event in events if isinstance(event, Token)] == ids
    codes = [frame for event in events if isinstance(event, SpeechChunk) for frame in event.codes]
    assert isinstance(events[-1], SpeechCompletion)
    return codes, events[-1]


def test_choices_of_one_prompt_come_in_one_stream(model, prompt):
    params = [lluda.SamplingParams(temperature=1.0, seed=seed, max_tokens=6) for seed in range(3)]
    alone = [model.chat(QUESTION, each).token_ids for each in params]
    requests = [model.request(prompt, each, index=index) for index, each in enumerate(params)]
    found = {event.index: event.token_ids for event in model.engine.submit(*requests) if isinstance(event, Completion)}
    assert [found[index] for index in range(3)] == alone


def test_a_turn_ends_where_the_template_ends_it_and_a_continuation_does_not(model, prompt):
    assert model.request(prompt, PARAMS).end_ids == frozenset(model.ends.turn)
    assert model.request(prompt, PARAMS, turn=False).end_ids == frozenset(model.ends.text)
    assert model.request(prompt, lluda.SamplingParams()).sampling.top_p is not None, "defaults are filled in"


def test_thoughts_are_not_spoken(model, prompt):
    plain, _ = spoken(model, prompt, "a", "b")
    assert plain
    assert spoken(model, prompt, "<think>", "c", "d", "</think>", "a", "b")[0] == plain
    assert spoken(model, prompt, "<think>", "</think>", "a", "<think>", "e", "</think>", "b")[0] == plain


def test_speech_ends_before_a_tool_call(model, prompt):
    plain, _ = spoken(model, prompt, "a", "b")
    assert spoken(model, prompt, "a", "b", "<tool_call>", "c", "</tool_call>", "d")[0] == plain


@pytest.mark.parametrize("tokens", [("<tool_call>", "a", "</tool_call>"), ("<think>", "a", "</think>")])
def test_an_answer_of_which_nothing_is_spoken_starts_no_talker(model, prompt, tokens, monkeypatch):
    monkeypatch.setattr(FrameGenerator, "__init__", lambda *_, **__: pytest.fail("the talker was started"))
    codes, completion = spoken(model, prompt, *tokens)
    assert (codes, completion.finish_reason, completion.frames) == ([], "silent", 0)


def test_what_a_user_spells_is_spoken(model, prompt):
    """Only the tokens themselves are marks: text that spells one was encoded as text."""
    ids = model.tokenizer.encode("<think>", allow_special=False)
    assert len(ids) > 1
    constraint = model.grammars.lark("start: " + " ".join(f"<[{number}]>" for number in ids))
    request = model.request(prompt, PARAMS, spoken=True, speech=SPEECH, constraint=constraint)
    *_, completion = model.engine.submit(request)
    assert completion.frames > 0


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("ab", 1), (["ab", "c"], 2), ([1, 2, 3], [[1, 2, 3]]), ([[1, 2], [3]], [[1, 2], [3]]), (((1, 2),), [[1, 2]])],
    ids=str,
)
def test_prompts_of_completions(model, prompt, expected):
    found = model.encode_prompt(prompt)
    assert len(found) == expected if isinstance(expected, int) else found == expected
    assert all(isinstance(number, int) for ids in found for number in ids)


@pytest.mark.parametrize("prompt", [5, None, [], ["a", 3], [[1], "a"], [1.5], [[1.5]], b"ab", {"a": 1}], ids=repr)
def test_what_is_no_prompt_is_refused(model, prompt):
    with pytest.raises(InvalidRequest, match="prompt must be a text, a list of token ids, or a list of either"):
        model.encode_prompt(prompt)


def test_prompts_with_logprobs_through_the_model(model):
    completion = model.generate("What is this?", max_tokens=0, prompt_logprobs=1)
    assert len(completion.prompt_logprobs) == completion.prompt_tokens
    assert completion.prompt_logprobs[0].logprob is None


def test_a_model_on_a_cpu_has_nothing_to_warm_up(model):
    """And says so; what is warmed up on a GPU is of tests/backends/cuda/test_cuda_graph.py."""
    assert model.warm_up(4) == 0
