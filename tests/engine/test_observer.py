"""What the engine tells of itself."""

from __future__ import annotations

import itertools
import threading
import time

import numpy as np
import pytest

from lluda.engine.job import Job
from lluda.engine.observer import EngineObserver, Reports
from lluda.engine.request import SpeechChunk, Status
from lluda.engine.runner import Runner
from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.engine.scheduler import Entry
from lluda.engine.speech.speech_params import SpeechParams
from lluda.engine.stream import Channel
from tests.engine.asking import engine_of as speaking_engine
from tests.engine.asking import spoken_request
from tests.engine.speech.test_speech import ASSISTANT, IM_START, NEWLINE, model, tensors
from tests.engine.test_engine import WATCHDOG, assert_idle, engine_of, ids_of, network, request

__all__ = ["model", "tensors"]  # fixtures


class Told(EngineObserver):
    """All it is told."""

    def __init__(self):
        self.events = []

    def step(self, kind, seconds, rows):
        assert seconds >= 0
        self.events.append((kind, rows))

    def began(self, queued_seconds):
        self.events.append(("began", queued_seconds >= 0))

    def first_token(self, seconds):
        self.events.append(("first token", seconds > 0))

    def first_audio(self, seconds):
        self.events.append(("first audio", seconds > 0))

    def underrun(self):
        self.events.append(("underrun", 1))

    def ended(self, status, error):
        self.events.append((status, error))


def test_steps_and_requests_are_told():
    engine, told = engine_of(network()), Told()
    engine.observer = told
    assert len(ids_of(engine.submit(request(range(30), SamplingParams(temperature=0, max_tokens=4))))) == 4
    assert_idle(engine)
    assert told.events == [
        ("began", True), ("first token", True), ("prefill", 30), *[("decode", 1)] * 3, (Status.DONE, None)
    ]  # fmt: skip
    assert engine.call(lambda: 5, kind="encoder") == 5
    assert told.events[-1] == ("encoder", 1)
    engine.observer = None
    ids_of(engine.submit(request([1])))
    assert told.events[-1] == ("encoder", 1)


def test_frames_and_sound_are_told(model):
    engine, told = speaking_engine(model[0], model[1]), Told()
    engine.observer = told
    params = SpeechParams(sampling=SamplingParams(temperature=0), max_frames=4)
    *_, spoken = engine.submit(spoken_request([IM_START, ASSISTANT, NEWLINE], None, params, text=range(20, 30)))
    assert engine.drain(WATCHDOG)
    kinds = [kind for kind, _ in told.events if kind != "underrun"]
    assert kinds[0] == "began" and kinds[-1] is Status.DONE
    assert spoken.frames >= 2
    assert kinds.count("frame") == spoken.frames + 1, "the last says that it ends"
    assert kinds.count("vocoder") == spoken.frames, "at first each frame has its samples made"
    assert kinds.count("first audio") == 1


def test_an_underrun_is_sound_that_comes_after_all_before_was_played(monkeypatch):
    told, reports, now = Told(), Reports(), [100.0]
    reports.observer = told
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    job = Job(0, request([1]), Channel(1, lambda: None), Entry(0), None, None, submitted=99.0)
    for at in (100.0, 100.5, 101.0, 102.5, 103.0):  # half a second of sound each
        now[0] = at
        job.hand_out(SpeechChunk(np.zeros(12000, np.float32), (), 0.0), reports, 24000)
    assert told.events == [("first audio", True), ("underrun", 1)]


def test_an_observer_that_fails_changes_nothing(caplog):
    class Failing(EngineObserver):
        def step(self, *_):
            raise RuntimeError("no metrics")

    engine = engine_of(network())
    engine.observer = Failing()
    assert len(ids_of(engine.submit(request([1, 2], SamplingParams(temperature=0, max_tokens=3))))) == 3
    assert_idle(engine)
    assert "the engine's observer failed" in caplog.text


def test_a_watchdog_sees_how_long_a_turn_takes(monkeypatch):
    engine, real, held = engine_of(network()), Runner.step, threading.Event()
    assert (engine.turn_started, engine.heartbeat, engine.error) == (None, 0.0, None)

    def step(*arguments):
        held.wait(WATCHDOG)
        return real(*arguments)

    monkeypatch.setattr(Runner, "step", step)
    events = engine.submit(request([1, 2], SamplingParams(temperature=0, max_tokens=3)))
    list(itertools.islice(events, 1))
    time.sleep(0.05)
    started = engine.turn_started
    assert started is not None and time.monotonic() - started > 0.04
    held.set()
    list(events)
    assert_idle(engine)
    end = time.monotonic() + WATCHDOG
    while engine.turn_started is not None and time.monotonic() < end:
        time.sleep(0.001)
    assert engine.turn_started is None and engine.heartbeat >= started


@pytest.mark.parametrize("budget", [2, 8])
def test_the_budget_of_positions_is_told(budget):
    assert engine_of(network(), sequences=budget).stats().kv_budget == budget * 1024
