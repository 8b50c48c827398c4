"""A process forked off one that had computed: on the reference backend torch waits there for threads it has not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import write_model
from tests.cli.omni import write_speaking_omni

CALLS = """
import os, sys
import lluda
from lluda.api.speech_model import load_speech

def told(call):
    try:
        call()
        print("computed", flush=True)
    except lluda.LludaError as error:
        print(error, flush=True)

def forked(*calls):
    sys.stdout.flush()
    child = os.fork()
    if not child:
        for call in calls:
            told(call)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0

def load():
    return lluda.load(sys.argv[1], backend="reference", dtype="f32", threads=2)

prompt = "hello there " * 40
"""
REFUSED = "this process was forked (os.fork, or multiprocessing's start method 'fork') from one that had computed"


def run(code: str, model: Path) -> list[str]:
    """Its lines. The time is a watchdog: without the check a child waits for ever."""
    ended = subprocess.run(
        [sys.executable, "-c", CALLS + code, model], capture_output=True, text=True, check=True, timeout=120
    )
    return ended.stdout.splitlines()


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("forked") / "text")


def test_every_call_in_a_fork_of_a_process_that_computed_says_so(text):
    code = """
model = load()
talk = model.conversation()
going_on = model.stream(prompt, max_tokens=9, ignore_eos=True)
next(going_on)
messages = [{"role": "user", "content": prompt}]
forked(
    lambda: model.generate(prompt, max_tokens=2),
    lambda: model.chat(messages, max_tokens=2),
    lambda: list(talk.ask(prompt, max_tokens=2)),
    lambda: list(going_on),
    load,
)
told(lambda: model.generate(prompt, max_tokens=2))
"""
    *refused, computed = run(code, text)
    assert len(refused) == 5
    assert all(line.startswith(REFUSED) and "get_context('spawn')" in line for line in refused)
    assert computed == "computed", "the parent goes on"


def test_a_voice_in_a_fork_says_so(tmp_path):
    code = """
speech = load_speech(sys.argv[1], backend="reference", threads=2)
forked(lambda: list(speech.speak("hello")), lambda: load_speech(sys.argv[1]))
"""
    refused = run(code, write_speaking_omni(tmp_path / "omni"))
    assert [line.startswith(REFUSED) for line in refused] == [True, True]


def test_a_fork_of_a_process_that_had_only_imported_computes(text):
    assert run("forked(lambda: load().generate(prompt, max_tokens=2))", text) == ["computed"]
