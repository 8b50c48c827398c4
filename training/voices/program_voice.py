"""Voices of installed programs: flite, festival (Debian festvox-us-slt-hts) and espeak-ng. Used as programs only.

Where they are not installed but carried, the variable LLUDA_PROGRAMS names a folder with bin, lib, festival (its
libdir) and espeak-ng-data.
"""

import os
import re
import subprocess
import tempfile
import wave
from pathlib import Path

import numpy as np

from training.voices.voice import Spoken, Voice

FAMILIES = ("flite", "festival", "espeak")
_TIMEOUT_SECONDS = 60
_LETTER_A = re.compile(r"\bA(?=[,.?]|$)")
"""The letter A alone, which flite and festival read as the article unless it is written as it sounds."""


def program(name: str) -> Voice:
    """flite-VOICE, festival-slt or espeak-VARIANT-WORDS-PITCH as a voice; nothing in it is random.

    Raises:
        ValueError: none of the three.
        FileNotFoundError: the program is not installed.
    """
    family, _, rest = name.partition("-")
    if family not in FAMILIES:
        raise ValueError(f"the family is {family!r}: it is one of {', '.join(FAMILIES)}")

    def speak(text: str, seed: int) -> Spoken:  # noqa: ARG001
        with tempfile.TemporaryDirectory() as folder:
            sound = Path(folder) / "sound.wav"
            written = text if family == "espeak" else _LETTER_A.sub("ay", text)
            command = {"flite": _flite, "festival": _festival, "espeak": _espeak}[family](rest, written, sound)
            done = subprocess.run(
                command, env=_environment(), capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False
            )
            if done.returncode or not sound.exists():
                raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stderr.strip()[:200]}")
            return _read(sound)

    return speak


def _carried() -> Path | None:
    return Path(os.environ["LLUDA_PROGRAMS"]) if os.environ.get("LLUDA_PROGRAMS") else None


def _environment() -> dict[str, str]:
    carried = _carried()
    return os.environ | ({"LD_LIBRARY_PATH": str(carried / "lib")} if carried else {})


def _program(name: str) -> str:
    carried = _carried()
    return str(carried / "bin" / name) if carried else name


def _flite(voice: str, text: str, sound: Path) -> list[str]:
    return [_program("flite"), "-voice", voice, "-t", text, "-o", str(sound)]


def _festival(voice: str, text: str, sound: Path) -> list[str]:
    script = sound.with_suffix(".scm")
    quoted = text.replace("\\", " ").replace('"', " ")
    say = f'(utt.save.wave (utt.synth (Utterance Text "{quoted}")) "{sound}" (quote riff))'
    script.write_text(f"(voice_cmu_us_{voice}_arctic_hts)\n{say}\n", encoding="utf-8")
    carried = _carried()
    where = ["--libdir", str(carried / "festival")] if carried else []
    return [_program("festival"), *where, "--batch", str(script)]


def _espeak(rest: str, text: str, sound: Path) -> list[str]:
    variant, words, pitch = rest.rsplit("-", 2)
    carried = _carried()
    where = [f"--path={carried}"] if carried else []
    return [_program("espeak-ng"), *where, "-v", variant, "-s", words, "-p", pitch, "-w", str(sound), text]


def _read(path: Path) -> Spoken:
    with wave.open(str(path), "rb") as sound:
        rate, data = sound.getframerate(), sound.readframes(sound.getnframes())
    return Spoken(np.frombuffer(data, "<i2").astype(np.float32) / 32768, rate)
