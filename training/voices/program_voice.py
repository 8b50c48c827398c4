"""Voices of installed programs: flite, festival (Debian festvox-us-slt-hts, festvox-kallpc16k, festvox-kdlpc16k),
pico2wave (Debian libttspico-utils, or built from PyPI ttspico) and espeak-ng. Used as programs only.

Where they are not installed but carried, the variable LLUDA_PROGRAMS names a folder with bin, lib, festival (its
libdir), pico (its languages) and espeak-ng-data.
"""

import os
import re
import subprocess
import tempfile
import wave
from functools import cache
from pathlib import Path

import numpy as np

from training.voices.voice import Spoken, Voice

FAMILIES = ("flite", "festival", "pico", "espeak")
_TIMEOUT_SECONDS = 60
_LETTER_A = re.compile(r"\bA(?=[,.?]|$)")
"""The letter A alone, which flite, festival and pico read as the article unless it is written as it sounds."""

_FESTIVAL_VOICES = {"slt": "cmu_us_slt_arctic_hts", "kal": "kal_diphone", "ked": "ked_diphone"}


def program(name: str, speed: float = 1.0) -> Voice:
    """flite-VOICE, festival-VOICE, pico-GB-SPEED-PITCH or espeak-VARIANT-WORDS-PITCH as a voice; nothing in it is
    random. flite at its own speed tells when each word begins, too.

    Raises:
        ValueError: none of the four.
        FileNotFoundError: the program is not installed.
    """
    family, _, rest = name.partition("-")
    if family not in FAMILIES:
        raise ValueError(f"the family is {family!r}: it is one of {', '.join(FAMILIES)}")
    timed = family == "flite" and speed == 1

    def speak(text: str, seed: int) -> Spoken:  # noqa: ARG001
        with tempfile.TemporaryDirectory() as folder:
            sound = Path(folder) / "sound.wav"
            written = text if family == "espeak" else _LETTER_A.sub("ay", text)
            match family:
                case "flite":
                    command = [*_flite(rest, written, sound, speed), *(["-psdur"] if timed else [])]
                case "festival":
                    command = _festival(rest, written, sound, speed)
                case "pico":
                    command = _pico(rest, written, sound)
                case _:
                    command = _espeak(rest, written, sound)
            printed = _printed(command)
            if not sound.exists():
                raise RuntimeError(f"{command[0]} has made no sound of {text!r}")
            spoken = _read(sound)
            return spoken._replace(starts=_starts(rest, written, printed)) if timed else spoken

    return speak


def _printed(command: list[str]) -> str:
    """What a program prints."""
    done = subprocess.run(
        command, env=_environment(), capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stderr.strip()[:200]}")
    return done.stdout


def _carried() -> Path | None:
    return Path(os.environ["LLUDA_PROGRAMS"]) if os.environ.get("LLUDA_PROGRAMS") else None


def _environment() -> dict[str, str]:
    carried = _carried()
    if carried is None:
        return dict(os.environ)
    return os.environ | {"LD_LIBRARY_PATH": str(carried / "lib"), "PICO_LANG": f"{carried}/pico/"}


def _program(name: str) -> str:
    carried = _carried()
    return str(carried / "bin" / name) if carried else name


def _flite(voice: str, text: str, sound: Path, speed: float) -> list[str]:
    return [_program("flite"), "-voice", voice, "-t", text, "-o", str(sound), *_stretched(speed)]


def _stretched(speed: float) -> list[str]:
    return [] if speed == 1 else ["--setf", f"duration_stretch={1 / speed:.3f}"]


def _starts(voice: str, text: str, printed: str) -> tuple[float, ...]:
    """The seconds at which each word begins, from flite's phonemes with their ends ("pau:0.177 k:0.25"); none where
    the words by themselves have not as many phonemes as they have together."""
    sounds = [(sound, float(end)) for sound, _, end in (one.partition(":") for one in printed.split())]
    begins = [0.0, *(end for _, end in sounds)]
    spoken = [begin for begin, (sound, _) in zip(begins, sounds, strict=False) if sound != "pau"]
    counts = [_phonemes_of(voice, word) for word in text.split()]
    if sum(counts) != len(spoken):
        return ()
    return tuple(spoken[sum(counts[:word])] for word in range(len(counts)))


@cache
def _phonemes_of(voice: str, word: str) -> int:
    printed = _printed([_program("flite"), "-voice", voice, "-ps", "-t", word, "none"]).split()
    return sum(sound != "pau" for sound in printed)


def _festival(voice: str, text: str, sound: Path, speed: float) -> list[str]:
    script = sound.with_suffix(".scm")
    quoted = text.replace("\\", " ").replace('"', " ")
    say = f'(utt.save.wave (utt.synth (Utterance Text "{quoted}")) "{sound}" (quote riff))'
    stretch = f"(Parameter.set 'Duration_Stretch {1 / speed:.3f})"
    script.write_text(f"(voice_{_FESTIVAL_VOICES[voice]})\n{stretch}\n{say}\n", encoding="utf-8")
    carried = _carried()
    where = ["--libdir", str(carried / "festival")] if carried else []
    return [_program("festival"), *where, "--batch", str(script)]


def _pico(rest: str, text: str, sound: Path) -> list[str]:
    accent, speed, pitch = rest.split("-")
    text = f'<speed level="{speed}"><pitch level="{pitch}">{text}</pitch></speed>'
    return [_program("pico2wave"), "-l", f"en-{accent}", "-w", str(sound), text]


def _espeak(rest: str, text: str, sound: Path) -> list[str]:
    variant, words, pitch = rest.rsplit("-", 2)
    carried = _carried()
    where = [f"--path={carried}"] if carried else []
    return [_program("espeak-ng"), *where, "-v", variant, "-s", words, "-p", pitch, "-w", str(sound), text]


def _read(path: Path) -> Spoken:
    with wave.open(str(path), "rb") as sound:
        rate, data = sound.getframerate(), sound.readframes(sound.getnframes())
    return Spoken(np.frombuffer(data, "<i2").astype(np.float32) / 32768, rate)
