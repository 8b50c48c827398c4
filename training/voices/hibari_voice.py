"""The speaker "lark": hibari's voice "heart" (PyPI hibari-tts, Apache-2.0), 24 kHz; and its text to phonemes."""

from functools import cache

import numpy as np
from hibari import Hibari

from training.voices.voice import Spoken, Voice


@cache
def hibari() -> Hibari:
    """The model, loaded once in a process, on one thread."""
    return Hibari(threads=1)


def phonemes(text: str) -> str:
    """The text in the alphabet that hibari and Kokoro share, sentences joined by a space."""
    return " ".join(hibari().phonemize(text))


def lark(speed: float = 1.0) -> Voice:
    """The voice at a speed: 0.8 is slow, 1.25 fast. The seed fixes its noise part."""

    def speak(text: str, seed: int) -> Spoken:
        tts, rng = hibari(), np.random.default_rng(seed)
        parts = tts.phonemize(text)
        sound = [tts.from_ids(tts.ids(part), speed, rng) for part in parts]
        return Spoken(np.concatenate(sound), tts.sample_rate, " ".join(parts))

    return speak
