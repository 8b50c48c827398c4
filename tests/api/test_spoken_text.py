"""A text spoken word for word: by a voice alone, by a whole model, and several at once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import lluda
from lluda.engine.request import SpeechChunk, SpeechCompletion, Token
from lluda.errors import InvalidRequest, UnsupportedModel
from lluda.inputs.text.speaking_parts import speaking_parts
from tests.cli.omni import write_omni, write_speaking_omni

WATCHDOG = 120
LONG = "A sentence of some words, to be said. " * 60
GREEDY = lluda.SpeechParams(sampling=lluda.SamplingParams(temperature=0.9, seed=1), max_frames=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_speaking_omni(tmp_path_factory.mktemp("speaking") / "tiny")


@pytest.fixture(scope="module")
def model(folder):
    return lluda.load(folder, dtype="f32")


@pytest.fixture(scope="module")
def voice(folder):
    return lluda.load_speech(folder, dtype="f32")


def heard(events, index=0):
    """Text, codes, samples and the completion."""
    events = [event for event in events if event.index == index]
    chunks = [event for event in events if isinstance(event, SpeechChunk)]
    samples = np.concatenate([chunk.samples for chunk in chunks]) if chunks else np.empty(0, np.float32)
    codes = [frame for chunk in chunks for frame in chunk.codes]
    (completion,) = (event for event in events if isinstance(event, SpeechCompletion))
    assert events[-1] is completion
    text = "".join(event.text for event in events if isinstance(event, Token))
    return text, codes, samples.tobytes(), (completion.frames, completion.samples, completion.finish_reason)


def test_a_whole_model_says_what_the_voice_alone_says(model, voice):
    assert heard(model.say("how are you?", GREEDY, speaker="chelsie")) == heard(
        voice.speak("how are you?", GREEDY, speaker="chelsie")
    )


def test_several_at_once_are_told_apart_and_each_is_what_it_is_alone(model):
    texts, speakers = ["hello", "how are you?", "tell me more", LONG], ["ethan", "chelsie", None, "ethan"]
    alone = [heard(model.say(text, GREEDY, speaker=one)) for text, one in zip(texts, speakers, strict=True)]
    requests = [
        model.say_request(text, GREEDY, speaker=one, index=index)
        for index, (text, one) in enumerate(zip(texts, speakers, strict=True))
    ]
    events = list(model.engine.submit(*requests))
    assert [heard(events, index) for index in range(4)] == alone
    assert model.engine.drain(WATCHDOG)
    model.engine.check_integrity()


def test_a_text_is_said_beside_a_spoken_answer(model):
    question, params = [{"role": "user", "content": "hello"}], {"temperature": 0, "max_tokens": 6}
    alone = heard(model.say("good day", GREEDY)), heard(model.speak(question, speech=GREEDY, **params))
    said, answered = model.say("good day", GREEDY), model.speak(question, speech=GREEDY, **params)
    assert (heard(said), heard(answered)) == alone


def test_a_long_text_is_its_parts_one_after_the_other(voice):
    parts = list(speaking_parts(LONG))
    assert len(parts) > 2
    free = replace(GREEDY, max_frames=None, guard=lluda.SpeechGuard(0.3, 0.0))
    whole, each = heard(voice.speak(LONG, free)), [heard(voice.speak(part, free)) for part in parts]
    assert whole[0] == LONG
    assert whole[1] == [frame for part in each for frame in part[1]]
    assert whole[2] == b"".join(part[2] for part in each)
    assert whole[3][0] == sum(part[3][0] for part in each) == len(whole[1])


def test_max_frames_are_of_all_parts_and_end_the_last(voice):
    short = replace(GREEDY, guard=lluda.SpeechGuard(0.3, 0.0))
    frames = heard(voice.speak(LONG, replace(short, max_frames=None)))[3][0]
    _, codes, _, (spoken, _, reason) = heard(voice.speak(LONG, replace(short, max_frames=frames - 1)))
    assert (len(codes), spoken, reason) == (frames - 1, frames - 1, "length")


def test_times_of_a_long_text_are_since_the_request(voice):
    *events, completion = voice.speak(LONG, replace(GREEDY, max_frames=None, guard=lluda.SpeechGuard(0.3, 0.0)))
    seconds = [event.seconds for event in events if isinstance(event, SpeechChunk)]
    assert seconds == sorted(seconds)
    assert completion.first_audio_seconds == seconds[0] and completion.seconds >= seconds[-1]
    assert completion.first_text_seconds <= seconds[0]


def test_a_text_that_is_cancelled_says_so(voice):
    events = voice.speak(LONG, replace(GREEDY, max_frames=None))
    next(event for event in events if isinstance(event, SpeechChunk))
    events.close()
    *_, completion = events
    assert completion.finish_reason == "cancelled"
    assert voice.engine.drain(WATCHDOG)
    voice.engine.check_integrity()


def test_no_text_and_unknown_speakers_are_refused(model, voice):
    for says in (model.say, voice.speak):
        with pytest.raises(InvalidRequest, match="no text to speak"):
            says("")
        with pytest.raises(InvalidRequest, match="speaker 'bob' does not exist"):
            says("hello", speaker="bob")


def test_what_a_checkpoint_can_do_is_told(model, tmp_path):
    assert (model.can_speak, model.can_hear, model.speakers) == (True, True, ("ethan", "chelsie"))
    silent = lluda.load(write_omni(tmp_path / "silent"), dtype="f32")
    assert (silent.can_speak, silent.can_hear, silent.speakers) == (False, True, ())
    with pytest.raises(UnsupportedModel, match="no talker"):
        silent.say("hello")
