"""What a voice is, and which there are.

A voice is named by one string, which says everything: "lark", "lark@1.15" (speed), "lark@1.15~7" (and accent), "rook",
"body-80-95" (lark with 0.8 of the pitch and formants at 0.95 of their frequencies), "kumo", "blend-17", "flite-slt",
"festival-slt", "pico-GB-110-95" (speed and pitch in a hundred), "espeak-en-us+f3-150-50" (words a minute, pitch),
"joe". Lark, its bodies and the blends have accents; they, flite and festival have speeds.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np


class Spoken(NamedTuple):
    """Samples (float32, mono, in [-1, 1]), their rate in hertz; where the family tells them, the phonemes, the seconds
    at which each word begins, and those at which each sound (a phoneme, a stress mark, a pause) does."""

    samples: np.ndarray
    rate: int
    phonemes: str = ""
    starts: tuple[float, ...] = ()
    sounds: tuple[tuple[str, float], ...] = ()


Voice = Callable[[str, int], Spoken]
"""Speaks a text; the number is the seed of what is random in it."""


@lru_cache(maxsize=256)
def open_voice(name: str) -> Voice:
    """The voice of a name; the last ones are kept open.

    Raises:
        ValueError: no family has that name.
        ModuleNotFoundError, FileNotFoundError: its package is not installed; training/NOTICE.md lists packages.
    """
    spoken, _, accented = name.partition("~")
    voice, _, at_speed = spoken.partition("@")
    speed, accent = float(at_speed or 1), int(accented) if accented else None
    family = voice.partition("-")[0]
    if family in ("lark", "rook", "body"):
        from training.voices.hibari_voice import speaker

        return speaker(voice, speed, accent)
    if family in ("kumo", "blend"):
        from training.voices.kokoro_voice import kokoro

        return kokoro(voice, speed, accent)
    if family in ("flite", "festival", "pico", "espeak"):
        from training.voices.program_voice import program

        return program(voice, speed)
    if family == "joe":
        from training.voices.piper_voice import joe

        return joe()
    if family == "tone":
        from training.voices.tone_voice import tone

        return tone
    known = "lark, rook, body-X-Y, kumo, blend-N, flite-X, festival-X, pico-X, espeak-X, joe, tone"
    raise ValueError(f"the voice is {name!r}: known are {known}")
