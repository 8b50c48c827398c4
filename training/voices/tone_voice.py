"""The voice "tone": a letter is a tone of its own. It needs no package, so tests and smoke runs speak with it."""

import numpy as np

from training.voices.voice import Spoken

RATE = 24000
_SECONDS_A_LETTER = 0.04


def tone(text: str, seed: int) -> Spoken:
    """Each letter as 40 ms of a tone of 200 to 3,000 Hz with faint noise from the seed; other characters are silent."""
    time = np.arange(int(_SECONDS_A_LETTER * RATE)) / RATE
    parts = [np.sin(2 * np.pi * _hertz(letter) * time) * letter.isalpha() for letter in text.lower()]
    samples = 0.3 * np.concatenate(parts)
    samples += 0.001 * np.random.default_rng(seed).standard_normal(len(samples))
    starts = [place * _SECONDS_A_LETTER for place in range(len(text)) if place == 0 or text[place - 1] == " "]
    return Spoken(samples.astype(np.float32), RATE, text, tuple(starts))


def _hertz(letter: str) -> float:
    return 200.0 * 15 ** ((ord(letter) - ord("a")) % 26 / 25)
