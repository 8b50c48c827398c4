"""tiny-omni, which comes with lluda, is what `ask`, `speak` and `chat --speak` use where no model is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import lluda as package
from lluda.weights.bundled import tiny_omni_folder

soundfile = pytest.importorskip("soundfile")

QUESTION = Path(__file__).resolve().parents[2] / "examples" / "question.flac"
ASKED, ANSWER = "What is a baby lion called?", "A young lion is a cub."
NOTICE = (
    "lluda: no -m given: using tiny-omni, a toy of 8 million parameters; "
    "the real one: -m Qwen/Qwen3-Omni-30B-A3B-Instruct (70 GB)"
)
CPU = ("--backend", "cpu", "--threads", 1)


def require_speech(path, seconds):
    """A sound of about that length, as loud as speech, quiet at its end: the talker came to the end of the text."""
    samples, rate = soundfile.read(path, dtype="float32")
    assert rate == 24000
    assert len(samples) / rate == pytest.approx(seconds, rel=0.3)
    assert np.sqrt(np.mean(samples**2)) > 0.02
    assert np.abs(samples[-240:]).max() < 0.1 * np.abs(samples).max()


def test_a_spoken_question_is_heard_answered_and_spoken(lluda, tmp_path):
    printed = lluda("ask", *CPU, "-t", 0, "--audio", QUESTION, "--speak", tmp_path / "a.wav")
    assert printed.code == 0, printed.err
    assert printed.out == f"{ANSWER}\n"
    assert printed.lines[0] == NOTICE
    assert "cpu backend" in printed.lines[1]
    assert "BF16 weights" in printed.lines[1]
    assert "(stopped" not in printed.err
    require_speech(tmp_path / "a.wav", 1.6)


def test_it_writes_down_what_it_hears(lluda):
    printed = lluda("ask", "-m", "tiny-omni", *CPU, "-t", 0, "--audio", QUESTION, "Write what you hear.")
    assert (printed.code, printed.out) == (0, f"{ASKED}\n")
    assert "no -m given" not in printed.err


def test_a_text_is_spoken(lluda, tmp_path):
    printed = lluda("speak", *CPU, ANSWER, "--json", "-o", tmp_path / "a.wav")
    assert printed.code == 0, printed.err
    assert printed.lines[0] == NOTICE
    assert json.loads(printed.out)["finish_reason"] == "stop"
    require_speech(tmp_path / "a.wav", 1.6)


def test_a_conversation_is_spoken(lluda, tmp_path):
    printed = lluda("chat", *CPU, "-t", 0, "--speak", tmp_path, stdin=f"{ASKED}\n".encode())
    assert printed.code == 0, printed.err
    assert printed.lines[0] == NOTICE
    assert printed.out == f"{ANSWER}\n"
    require_speech(tmp_path / "answer-001.wav", 1.6)


def test_of_pictures_it_says_that_it_learned_nothing(lluda, tmp_path):
    image = pytest.importorskip("PIL.Image")
    image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "p.png")
    printed = lluda("ask", *CPU, "-t", 0, "-n", 2, "--image", tmp_path / "p.png", ASKED)
    assert printed.code == 0, printed.err
    assert printed.lines[:2] == [
        NOTICE, "lluda: warning: tiny-omni was trained without pictures; what it says of them means nothing"
    ]  # fmt: skip


def test_a_chat_that_is_not_spoken_keeps_the_text_model(lluda, smollm2, monkeypatch):
    def load(path, **options):
        raise package.InvalidRequest(f"enough of {path.path.name}")

    monkeypatch.setattr("lluda.load", load, raising=False)
    printed = lluda("chat")
    assert printed.lines[-1] == f"lluda chat: enough of {smollm2.name}"


@pytest.mark.parametrize("arguments", [("ask", "hello"), ("speak", "hello", "-o", "a.wav"), ("chat", "--speak", "a")])
def test_a_folder_that_holds_no_model_is_one_line(lluda, monkeypatch, tmp_path, arguments):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLUDA_TINY_OMNI", str(tmp_path))
    printed = lluda(*arguments)
    assert printed.code == 2
    assert f"tiny-omni: LLUDA_TINY_OMNI is {tmp_path}, which has no config.json" in printed.lines[-1]
    assert list(tmp_path.iterdir()) == []


def test_the_library_finds_it_by_name():
    answer = package.load("tiny-omni", threads=1).chat([{"role": "user", "content": ASKED}], temperature=0)
    assert answer.text == ANSWER
    assert package.load_speech("tiny-omni", threads=1).files.path == tiny_omni_folder()
