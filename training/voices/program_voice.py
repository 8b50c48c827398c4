"""Voices of installed programs: flite, festival (Debian festvox-us-slt-hts) and espeak-ng. Used as programs only."""

import re
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import soundfile

from training.voices.voice import Spoken, Voice

_TIMEOUT_SECONDS = 60
_LETTER = re.compile(r"\bA(?=,|\.|\?|$)")
"""The letter A alone: programs take it for the article, so it is written as it sounds."""


def program(name: str) -> Voice:
    """flite-VOICE, festival-slt or espeak-VARIANT-WORDS-PITCH as a voice; nothing in it is random.

    Raises:
        ValueError: none of the three.
    """
    family, _, rest = name.partition("-")

    def speak(text: str, seed: int) -> Spoken:  # noqa: ARG001
        with tempfile.TemporaryDirectory() as folder:
            sound = Path(folder) / "sound.wav"
            written = _LETTER.sub("eh" if family == "espeak" else "ay", text) if family != "espeak" else text
            _run(_command(family, rest, written, sound), written if family == "festival" else None)
            samples, rate = soundfile.read(sound, dtype="float32")
        return Spoken(np.ascontiguousarray(samples), rate)

    return speak


def _command(family: str, rest: str, text: str, sound: Path) -> list[str]:
    if family == "flite":
        return ["flite", "-voice", rest, "-t", text, "-o", str(sound)]
    if family == "festival":
        return ["text2wave", "-eval", "(voice_cmu_us_slt_arctic_hts)", "-o", str(sound)]
    if family == "espeak":
        variant, words, pitch = rest.rsplit("-", 2)
        return ["espeak-ng", "-v", variant, "-s", words, "-p", pitch, "-w", str(sound), text]
    raise ValueError(f"the family is {family!r}: it is one of flite, festival, espeak")


def _run(command: list[str], typed: str | None) -> None:
    done = subprocess.run(command, input=typed, text=True, capture_output=True, timeout=_TIMEOUT_SECONDS, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stderr.strip()[:200]}")
