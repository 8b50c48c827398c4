"""Sound that a voice detector takes for one voice that speaks without a pause, made of numbers."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_VOWELS = np.array([[730, 1090, 2440], [270, 2290, 3010], [300, 870, 2240], [530, 1840, 2480], [570, 840, 2410]])
"""Formants in Hz of English vowels (Peterson and Barney 1952, men)."""

_STRENGTHS, _WIDTHS = np.array([1, 0.5, 0.25]), np.array([60, 90, 120])
_SYLLABLES = 4
"""A second."""
_PITCH, _PHRASE = 120, 2
"""Hz, and seconds in which it falls."""
_HARMONICS = 32
_SEED = 3
_NOISE = 1e-3


def voice(seconds: float, rate: int, number: int = 0) -> NDArray[np.float32]:
    """So many seconds, mono, full scale 1; nothing in it is louder than its first half second. Another ``number`` is
    the same voice in other noise 50 dB below, so that nothing that was computed of one serves the other."""
    spoken = _spoken(seconds, rate)
    noise = np.random.default_rng(number).standard_normal(len(spoken), np.float32)
    return spoken + np.float32(_NOISE) * noise


def stillness(seconds: float, rate: int) -> NDArray[np.float32]:
    """The same room when nobody speaks."""
    noise = np.random.default_rng(_SEED).standard_normal(round(seconds * rate), np.float32)
    return np.float32(_NOISE / 3) * noise


@lru_cache(maxsize=4)
def _spoken(seconds: float, rate: int) -> NDArray[np.float32]:
    """Syllables: vowels that glide into each other on a falling pitch, with a hiss between them, which is what tells
    them from a song."""
    time = np.arange(round(seconds * rate)) / rate
    beat = _SYLLABLES * time
    syllable, within = np.divmod(beat, 1)
    random = np.random.default_rng(_SEED)
    samples = _vowels(time, syllable.astype(int), within, rate, random) * (0.1 + 0.9 * np.sin(np.pi * within) ** 2)
    hiss = np.diff(random.standard_normal(len(time)), prepend=0)
    edge = np.minimum(within, 1 - within)
    samples = 0.1 * samples + 0.02 * hiss * np.exp(-((edge / 0.07) ** 2))
    samples[: rate // 2] *= 2
    spoken: NDArray[np.float32] = samples.astype(np.float32)
    return spoken


def _vowels(
    time: NDArray[np.float64],
    syllable: NDArray[np.intp],
    within: NDArray[np.float64],
    rate: int,
    random: np.random.Generator,
) -> NDArray[np.float64]:
    chosen = _VOWELS[random.integers(0, len(_VOWELS), int(syllable[-1]) + 2)]
    glide = np.clip(3 * within, 0, 1)[:, None]
    formants = chosen[syllable] * (1 - glide) + chosen[syllable + 1] * glide
    pitch = _PITCH * (1 + 0.3 * (0.5 - time % _PHRASE / _PHRASE) + 0.04 * np.sin(2.6 * np.pi * time))
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    samples = np.zeros(len(time))
    for harmonic in range(1, _HARMONICS + 1):
        away = (harmonic * pitch[:, None] - formants) / _WIDTHS
        samples += (_STRENGTHS / (1 + away**2)).sum(1) / harmonic**0.3 * np.sin(harmonic * phase)
    return samples
