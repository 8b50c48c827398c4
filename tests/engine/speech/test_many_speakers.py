"""Speech for several requests at once: each has the codes and samples that it has alone."""

from __future__ import annotations

import random
import threading
from collections import Counter

import numpy as np
import pytest
import torch

import lluda
from lluda.engine.request import Completion, SpeechChunk, SpeechCompletion, Token
from lluda.engine.runner import Runner
from lluda.engine.speech.frames import FrameGenerator
from lluda.engine.speech.talker_prompt import TalkerPromptBuilder
from lluda.errors import LludaError
from lluda.models.code2wav import Code2Wav
from tests.cli.omni import write_speaking_omni

WATCHDOG = 120
TEXTS = ["hello", "how are you?", "tell me more of it", "one two three", "a", "what is this", "go on", "yes"]
SOUND = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_speaking_omni(tmp_path_factory.mktemp("speaking") / "tiny")


ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.fixture(scope="module", params=["f32", "bf16"])
def model(request, folder):
    return lluda.load(folder, dtype=request.param, deterministic=True)


@pytest.fixture(scope="module", params=["f32 cpu", "bf16 cpu", pytest.param("bf16 cuda", marks=ON_GPU)])
def model_anywhere(request, folder):
    dtype, device = request.param.split()
    return lluda.load(folder, dtype=dtype, device=device, deterministic=True)


def asked(model, index):
    """One spoken answer, of its own sampling, length and speaker; every third question has a sound."""
    content = [{"type": "text", "text": TEXTS[index]}]
    if index % 3 == 1:
        content.insert(0, {"type": "audio", "audio": SOUND[: 8000 + 1000 * index], "sampling_rate": 16000})
    speech = lluda.SpeechParams(
        sampling=lluda.SamplingParams(seed=index, temperature=0.0 if index % 2 else 0.9), max_frames=3 + 2 * index
    )
    params = {"temperature": 0.0 if index % 2 else 0.8, "seed": index, "max_tokens": 2 + index}
    speaker = ("ethan", "chelsie", None)[index % 3]
    return model.speak([{"role": "user", "content": content}], speech=speech, speaker=speaker, **params)


def heard(events):
    """Ids, codes and samples."""
    events = list(events)
    chunks = [event for event in events if isinstance(event, SpeechChunk)]
    samples = np.concatenate([chunk.samples for chunk in chunks]) if chunks else np.empty(0)
    codes = [frame for chunk in chunks for frame in chunk.codes]
    return [event.id for event in events if isinstance(event, Token)], codes, samples.tobytes()


def test_8_at_once_are_what_each_is_alone(model_anywhere):
    alone = [heard(asked(model_anywhere, index)) for index in range(8)]
    together = [asked(model_anywhere, index) for index in range(8)]
    assert [heard(events) for events in together] == alone
    assert model_anywhere.engine.drain(WATCHDOG)
    model_anywhere.engine.check_integrity()


def test_callers_of_8_threads_get_what_they_get_alone_and_a_third_goes_away(model_anywhere):
    alone = [heard(asked(model_anywhere, index)) for index in range(8)]
    found, before = {}, model_anywhere.engine.stats()

    def caller(number):
        draw = random.Random(number)
        for turn in range(3):
            index = (number + 3 * turn) % 8
            events = asked(model_anywhere, index)
            if draw.random() < 1 / 3:
                next(events)
                events.close()
            else:
                found[number, turn] = index, heard(events)

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WATCHDOG)
    assert model_anywhere.engine.drain(WATCHDOG)
    model_anywhere.engine.check_integrity()
    for index, answer in found.values():
        assert answer == alone[index], f"answer {index}"
    now = model_anywhere.engine.stats()
    assert now.submitted - before.submitted == 24
    assert now.failed == before.failed


def test_an_error_in_one_speech_is_no_one_elses(model, monkeypatch):
    alone = heard(asked(model, 3))
    real = FrameGenerator.choose_other

    def choose_other(self, logits):
        if self._sampler.seed == 5:
            raise LludaError("the code predictor's logits hold NaN")
        return real(self, logits)

    monkeypatch.setattr(FrameGenerator, "choose_other", choose_other)
    good, bad = asked(model, 3), asked(model, 5)
    assert heard(good) == alone
    with pytest.raises(LludaError, match="hold NaN"):
        list(bad)
    assert model.engine.drain(WATCHDOG)
    model.engine.check_integrity()


def test_code2wav_that_fails_ends_the_answers_that_it_was_making_sound_of(model, monkeypatch):
    real = Code2Wav.push_all

    def push_all(self, codes, states):
        raise RuntimeError("injected")

    monkeypatch.setattr(Code2Wav, "push_all", push_all)
    for events in (asked(model, 3), asked(model, 4)):
        with pytest.raises(RuntimeError, match="injected"):
            list(events)
    monkeypatch.setattr(Code2Wav, "push_all", real)
    assert heard(asked(model, 3))[1]
    assert model.engine.drain(WATCHDOG)
    model.engine.check_integrity()


def test_a_talker_prompt_that_cannot_be_made_is_no_one_elses(model, monkeypatch):
    alone, real = heard(asked(model, 3)), TalkerPromptBuilder.build

    def build(self, prompt, media, first, speaker, known):
        if speaker == "chelsie":
            raise ValueError("injected")
        return real(self, prompt, media, first, speaker, known)

    monkeypatch.setattr(TalkerPromptBuilder, "build", build)
    good, bad = asked(model, 3), asked(model, 4)
    assert heard(good) == alone
    with pytest.raises(ValueError, match="injected"):
        list(bad)
    assert model.engine.drain(WATCHDOG)
    model.engine.check_integrity()


def test_a_speech_that_is_cancelled_says_so(model, monkeypatch):
    real = Runner.prefill_rows

    def prefill_rows(*arguments):
        cancelled.wait(WATCHDOG)  # so that it has not ended before
        return real(*arguments)

    cancelled = threading.Event()
    monkeypatch.setattr(Runner, "prefill_rows", prefill_rows)
    events = asked(model, 7)
    events.close()
    cancelled.set()
    rest = list(events)
    assert isinstance(rest[-1], SpeechCompletion) and rest[-1].finish_reason == "cancelled"


def test_readers_and_listeners_together(model):
    """Text alone beside speech: all end, and as alone."""
    question = [{"role": "user", "content": "hello there"}]
    params = {"temperature": 0.7, "seed": 1, "max_tokens": 20}
    alone = model.chat(question, **params).token_ids, heard(asked(model, 2))
    reader, listener = model.chat_stream(question, **params), asked(model, 2)
    spoken = heard(listener)
    read = next(event for event in reader if isinstance(event, Completion))
    assert (read.token_ids, spoken) == alone


def test_no_listener_waits_for_the_end_of_another_answer(model):
    """When the first of four has all of its sound, the others have most of theirs."""
    params, speech = model.sampling(None, {"temperature": 0, "max_tokens": 8, "ignore_eos": True}), lluda.SpeechParams(
        sampling=lluda.SamplingParams(temperature=0), max_frames=12
    )  # fmt: skip
    prompts = [model.chat_prompt([{"role": "user", "content": text}]) for text in TEXTS[:4]]
    requests = [
        model.request(prompt, params, spoken=True, speech=speech, index=index) for index, prompt in enumerate(prompts)
    ]
    frames = Counter(dict.fromkeys(range(4), 0))
    for event in model.engine.submit(*requests):
        if isinstance(event, SpeechChunk):
            frames[event.index] += len(event.codes)
            if max(frames.values()) == 12:
                break
    assert min(frames.values()) >= 8, frames
