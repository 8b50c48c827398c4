"""``lluda talk``: tiny-omni is spoken to, with a recording as microphone, in real time."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

import lluda
from lluda.cli.main import main
from lluda.engine.request import SpeechChunk

RATE = 24_000
LONG, SHORT = "Spell the word elephant.", "What is the capital of France?"


@pytest.fixture(scope="module")
def said() -> dict[str, np.ndarray]:
    """Questions in a voice that tiny-omni knows."""
    model = lluda.load_speech("tiny-omni", threads=1)
    return {
        text: np.concatenate([event.samples for event in model.speak(text) if isinstance(event, SpeechChunk)])
        for text in (LONG, SHORT)
    }


def recording(path: Path, *parts: np.ndarray | float) -> str:
    """A file of sounds and of seconds of silence."""
    whole = [np.zeros(int(part * RATE), np.float32) if isinstance(part, float) else part for part in parts]
    soundfile.write(path, np.concatenate(whole), RATE, subtype="PCM_16")
    return str(path)


def talk(*arguments: str) -> int:
    return main(["talk", "-m", "tiny-omni", "--threads", "1", *arguments])


def test_an_answer_is_interrupted(said, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second question comes into the first answer, of which stays what was heard; the last is heard to its end."""
    heard = tmp_path / "heard.wav"
    microphone = recording(tmp_path / "said.wav", 0.5, said[LONG], 2.5, said[SHORT], 1.2)
    assert talk("--microphone", microphone, "-o", str(heard)) == 0
    printed = capsys.readouterr()
    first, second = printed.out.splitlines()
    assert first.startswith("Elephant is spelled E") and second == "The capital of France is Paris."
    (interrupted,) = [line for line in printed.err.splitlines() if "interrupted after" in line]
    kept = interrupted.partition(" s: ")[2]
    assert kept in (first, "nothing of it was heard") or (first.startswith(kept) and kept != first)
    assert f"you: {SHORT}" in printed.err and "after the last word" in printed.err
    samples, rate = soundfile.read(heard)
    # What was left of the first answer is not in it.
    assert rate == RATE and 1.0 < len(samples) / RATE < 6.0


def test_an_answer_is_not_interrupted(said, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is said into it is not heard, as an answer's own sound from a loudspeaker is not to be."""
    microphone = recording(tmp_path / "said.wav", 0.5, said[LONG], 1.0, said[SHORT], 0.5)
    assert talk("--microphone", microphone, "-o", str(tmp_path / "heard.wav"), "--no-interrupting") == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("Elephant is spelled E") and len(printed.out.splitlines()) == 1
    assert "interrupted after" not in printed.err
    samples, rate = soundfile.read(tmp_path / "heard.wav")
    assert len(samples) / rate > 2.5, "it is heard to its end"


def test_ctrl_c(said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In the midst of a turn, with an answer under way before it."""

    def pressed(_: str | None) -> Iterator[np.ndarray]:
        speech = np.concatenate([np.zeros(8000, np.float32), said[LONG], np.zeros(RATE, np.float32)])
        for start in range(0, len(speech) - 512, 512):
            yield speech[start : start + 512]
        raise KeyboardInterrupt

    monkeypatch.setattr("lluda.inputs.media.microphone.microphone", pressed)
    heard = tmp_path / "heard.wav"
    assert talk("-o", str(heard)) == 0
    assert "ended" in capsys.readouterr().err
    assert soundfile.info(heard).samplerate == RATE, "what was heard is a whole recording"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--microphone", "none.wav"), "none.wav: there is no such file"),
        (("--microphone", __file__), "may be a .wav or .flac file"),
        (("--eagerness", "none"), "--eagerness"),
        (("--speaker", "nobody"), "nobody"),
    ],
)
def test_refused(arguments, message, said, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    sound = recording(tmp_path / "said.wav", 0.1)
    given = ("--microphone", sound) if "--microphone" not in arguments else ()
    assert talk("-o", "out.wav", *given, *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.wav").exists()


def test_no_sounddevice(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert talk("-o", str(tmp_path / "out.wav")) != 0
    assert "pip install 'lluda[speakers]'; or --microphone FILE.wav" in capsys.readouterr().err
