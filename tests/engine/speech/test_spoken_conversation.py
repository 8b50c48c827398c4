"""Turns that are asked and turns that are spoken, in one conversation."""

from __future__ import annotations

import numpy as np
import pytest

import lluda
from lluda.engine.request import SpeechChunk, SpeechCompletion
from tests.cli.omni import write_speaking_omni

GREEDY = {"temperature": 0, "max_tokens": 4}
SPEECH = lluda.SpeechParams(sampling=lluda.SamplingParams(temperature=0), max_frames=5)
SOUND = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
HEARD = [{"type": "audio", "audio": SOUND, "sampling_rate": 16000}, {"type": "text", "text": "what?"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return lluda.load(write_speaking_omni(tmp_path_factory.mktemp("speaking") / "tiny"), dtype="f32")


def speech_of(events):
    events = list(events)
    assert isinstance(events[-1], SpeechCompletion)
    return [frame for event in events if isinstance(event, SpeechChunk) for frame in event.codes]


def prefilled(model, monkeypatch):
    """How many rows each prefill computes, from now on."""
    counts, real = [], type(model.runner).prefill_rows

    def prefill_rows(self, prompt, cache, rows, *rest):
        counts.append(rows)
        return real(self, prompt, cache, rows, *rest)

    monkeypatch.setattr(type(model.runner), "prefill_rows", prefill_rows)
    return counts


def test_a_spoken_turn_is_what_a_fresh_answer_speaks(model, monkeypatch):
    chat = model.conversation("be brief")
    speech_of(chat.speak(HEARD, speech=SPEECH, **GREEDY))
    counts = prefilled(model, monkeypatch)
    second = speech_of(chat.speak("and then?", speech=SPEECH, speaker="chelsie", **GREEDY))
    history = chat.messages[:-1]
    fresh = speech_of(model.speak(history, speech=SPEECH, speaker="chelsie", **GREEDY))
    assert second == fresh
    assert counts[0] < counts[1] - 10, "the sound was computed again though its rows were kept"


def test_media_of_an_unspoken_turn_run_again_for_the_talker(model, monkeypatch):
    chat = model.conversation()
    list(chat.ask(HEARD, **GREEDY))
    spoken = speech_of(chat.send_spoken([{"role": "user", "content": "and then?"}], speech=SPEECH, **GREEDY))
    assert spoken == speech_of(model.speak(chat.messages[:-1], speech=SPEECH, **GREEDY))
    counts = prefilled(model, monkeypatch)
    speech_of(chat.speak("more", speech=SPEECH, **GREEDY))
    assert counts[0] < 40, "now they are kept"


def test_a_turn_that_is_not_spoken_reads_like_one_that_is(model):
    spoken, asked = model.conversation(), model.conversation()
    speech_of(spoken.speak("hello", speech=SPEECH, **GREEDY))
    list(asked.ask("hello", **GREEDY))
    assert spoken.messages == asked.messages


def test_an_unknown_speaker_leaves_the_conversation_as_it_was(model):
    chat = model.conversation()
    with pytest.raises(lluda.errors.InvalidRequest, match="choose one of ethan, chelsie"):
        chat.speak("hello", speaker="bob")
    assert chat.messages == []


def test_speech_that_is_broken_off_keeps_what_was_said(model):
    chat = model.conversation()
    events = chat.speak("hello", speech=SPEECH, **GREEDY)
    for event in events:
        if isinstance(event, SpeechChunk):
            break
    events.close()
    assert [message["role"] for message in chat.messages] == ["user", "assistant"]
    fresh = speech_of(model.speak([*chat.messages, {"role": "user", "content": "go on"}], speech=SPEECH, **GREEDY))
    assert speech_of(chat.speak("go on", speech=SPEECH, **GREEDY)) == fresh
