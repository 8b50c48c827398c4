"""The bound on a talker that never says its end."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce

import pytest

from lluda.engine.prompt_rows import PromptRows
from lluda.engine.request import SpeechChunk, SpeechCompletion
from lluda.engine.sampling.sampler import Sampler
from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.engine.speech import frames as frames_module
from lluda.engine.speech.speech import joined
from lluda.engine.speech.speech_guard import SpeechGuard
from lluda.engine.speech.speech_params import SpeechParams
from lluda.errors import InvalidRequest
from tests.engine.asking import ask_spoken
from tests.engine.speech.test_speech import ASSISTANT, IM_START, NEWLINE, model, tensors  # noqa: F401

HEADER = PromptRows([IM_START, ASSISTANT, NEWLINE])
GREEDY = SpeechParams(sampling=SamplingParams(temperature=0)).with_defaults({})


@pytest.fixture
def voice(model, monkeypatch):  # noqa: F811
    """A talker that cannot say its end: it is suppressed beside all that is no code."""

    def endless(config, params):
        codes, vocabulary = config.code_predictor.vocab_size, config.decoder.vocab_size
        return Sampler(params, [], vocabulary, suppress=frozenset(range(codes, vocabulary)))

    monkeypatch.setattr(frames_module, "_talker_sampler", endless)
    return model[1]


def guard(voice, floor: int, rate: int) -> SpeechGuard:
    """One of so many frames, and more for each token."""
    frame = voice.code2wav.config.samples_per_frame / voice.sample_rate
    return SpeechGuard(floor * frame, rate * frame)


def spoken(voice, tokens, params) -> SpeechCompletion:
    events = list(ask_spoken(None, voice, HEADER, None, params, text=tokens))
    chunks = [event for event in events if isinstance(event, SpeechChunk)]
    assert sum(len(chunk.codes) for chunk in chunks) == events[-1].frames
    assert sum(len(chunk.samples) for chunk in chunks) == events[-1].samples
    return events[-1]


@pytest.mark.parametrize(("tokens", "frames"), [([30], 7), ([30, 31], 9), ([30, 31, 32], 11)])
def test_a_talker_without_an_end_is_stopped_after_floor_and_rate(voice, tokens, frames):
    """5 frames and 2 for each token that is spoken."""
    done = spoken(voice, tokens, replace(GREEDY, guard=guard(voice, 5, 2)))
    assert (done.frames, done.finish_reason) == (frames, "runaway")


def test_the_bound_grows_while_the_text_comes(voice):
    """With a floor of one frame and a rate of one, sound may go on as long as tokens come, one a frame."""
    done = spoken(voice, range(30, 36), replace(GREEDY, guard=guard(voice, 1, 1)))
    assert (done.frames, done.finish_reason) == (7, "runaway")


def test_the_smaller_of_guard_and_max_frames_holds_and_is_named(voice):
    assert spoken(voice, [30], replace(GREEDY, guard=guard(voice, 2, 2), max_frames=3)).finish_reason == "length"
    assert spoken(voice, [30], replace(GREEDY, guard=guard(voice, 2, 2), max_frames=5)).finish_reason == "runaway"


def test_without_a_guard_only_max_frames_ends_it(voice):
    done = spoken(voice, [30], replace(GREEDY, guard=None, max_frames=9))
    assert (done.frames, done.finish_reason) == (9, "length")


def test_the_guard_of_a_request_outlives_the_defaults_of_the_file():
    chosen = SpeechParams(guard=SpeechGuard(3, 0)).with_defaults({"talker_max_new_tokens": 100})
    assert chosen.guard == SpeechGuard(3, 0)
    assert SpeechParams(guard=None).with_defaults({}).guard is None
    assert SpeechParams().with_defaults({}).guard == SpeechGuard(15.0, 1.0)


def test_a_part_that_ran_away_is_told_of_the_whole():
    def reason(*reasons):
        whole = reduce(joined, (SpeechCompletion(2, 20, each, None, None, 0.0) for each in reasons))
        return whole.finish_reason, whole.frames

    assert reason("stop", "runaway", "stop") == ("runaway", 6)
    assert reason("runaway", "silent") == ("runaway", 4)
    assert reason("stop", "stop") == ("stop", 4)
    assert reason("runaway", "length") == ("length", 4)


@pytest.mark.parametrize(
    "values", [(-1, 1), (1, -1), (0, 0), (float("nan"), 1), (float("inf"), 1), ("5", 1), (True, 1)]
)
def test_a_guard_of_other_numbers_is_refused(values):
    with pytest.raises(InvalidRequest, match="speech guard"):
        SpeechGuard(*values)


def test_a_guard_is_read_from_text():
    assert SpeechGuard.parse("20,0.5") == SpeechGuard(20.0, 0.5)
    assert SpeechGuard.parse("off") is None
    assert SpeechGuard.parse(SpeechGuard(2.5, 3).option) == SpeechGuard(2.5, 3)
    for text in ("", "20", "a,b", "1,2,3", "on"):
        with pytest.raises(InvalidRequest, match="neither off nor two numbers"):
            SpeechGuard.parse(text)
    with pytest.raises(InvalidRequest, match="guard must be a SpeechGuard"):
        SpeechParams(guard=5)
