"""What may be heard beside speech or in its place: noise, babble, and music made of chords, drums or a melody."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from lluda.engine.listening.vad import RATE

Sound = NDArray[np.float32]

_BABBLING = 6
"""Voices at once."""


def white(samples: int, random: np.random.Generator) -> Sound:
    """Every frequency as strong."""
    return random.normal(0, 1, samples).astype(np.float32)


def pink(samples: int, random: np.random.Generator) -> Sound:
    """3 dB less an octave."""
    spectrum = np.fft.rfft(random.normal(0, 1, samples))
    frequency = np.maximum(np.arange(len(spectrum)), max(1, samples // 800))
    return _level(np.fft.irfft(spectrum / np.sqrt(frequency), samples))


def babble(samples: int, random: np.random.Generator, speech: Sequence[Sound]) -> Sound:
    """Six of the given voices at once, without an end."""
    total = np.zeros(samples)
    for _ in range(_BABBLING):
        order = random.permutation(len(speech))
        row = np.concatenate([speech[number] for number in order[: 2 + samples // RATE]])
        total += np.resize(np.roll(row, random.integers(len(row))), samples)
    return _level(total)


def silence(samples: int, random: np.random.Generator) -> Sound:
    """A quiet room: noise 60 dB below full scale when scaled as the others."""
    return pink(samples, random) * np.float32(1e-2)


def chords(samples: int, random: np.random.Generator) -> Sound:
    """Four chords again and again, of tones with six harmonics that die away."""
    triads = ((0, 4, 7), (9, 12, 16), (5, 9, 12), (7, 11, 14))
    return _notes(samples, [(number * 0.8, triad, 1.5) for number, triad in _repeated(triads, samples, 0.8)], random)


def melody(samples: int, random: np.random.Generator) -> Sound:
    """One voice in tones of 0.2 to 0.6 s with vibrato, as a flute or somebody humming."""
    scale, time, notes = (0, 2, 4, 5, 7, 9, 11, 12), 0.0, []
    while time * RATE < samples:
        length = float(random.uniform(0.2, 0.6))
        notes.append((time, (scale[random.integers(len(scale))],), length))
        time += length
    return _notes(samples, notes, random, vibrato=0.01)


def drums(samples: int, random: np.random.Generator) -> Sound:
    """A falling tone on each beat, noise on every second, ticks between, 120 beats a minute."""
    total = np.zeros(samples + RATE)
    time = np.arange(RATE // 3) / RATE
    kick = np.sin(2 * np.pi * (50 * time + 6 * (1 - np.exp(-25 * time)))) * np.exp(-12 * time)
    for number, at in enumerate(range(0, samples, RATE // 4)):
        snare = random.normal(0, 0.5, len(time)) * np.exp(-20 * time)
        tick = random.normal(0, 0.2, len(time)) * np.exp(-80 * time)
        total[at : at + len(time)] += (kick if number % 4 == 0 else snare if number % 4 == 2 else 0) + tick
    return _level(total[:samples])


ALONE: Mapping[str, Callable[[int, np.random.Generator], Sound]] = MappingProxyType(
    {"silence": silence, "white": white, "pink": pink, "chords": chords, "melody": melody, "drums": drums}
)
"""What no turn should be found in."""


def behind(speech: Sound, active: Sound, noise: Sound, decibel: float) -> Sound:
    """``speech`` with ``noise`` as much quieter than its ``active`` part as ``decibel`` says."""
    gain = np.sqrt(np.mean(np.square(active))) * 10 ** (-decibel / 20)
    return np.asarray(speech + noise[: len(speech)] * gain, np.float32)


def _repeated(items: Sequence[Sequence[int]], samples: int, seconds: float) -> list[tuple[int, Sequence[int]]]:
    return [(number, items[number % len(items)]) for number in range(int(samples / RATE / seconds) + 1)]


def _notes(
    samples: int,
    notes: Sequence[tuple[float, Sequence[int], float]],
    random: np.random.Generator,
    vibrato: float = 0.0,
) -> Sound:
    """Tones by start in seconds, half tones above middle C, and length in seconds."""
    total = np.zeros(samples + 3 * RATE)
    for start, tones, length in notes:
        time = np.arange(int(length * RATE)) / RATE
        shape = np.minimum(time / 0.02, 1) * np.minimum((length - time) / 0.05, 1) * np.exp(-0.7 * time)
        for tone in tones:
            hertz = 261.63 * 2 ** (tone / 12) * (1 + vibrato * np.sin(2 * np.pi * 5.5 * time))
            phase = 2 * np.pi * np.cumsum(hertz) / RATE + random.uniform(0, 6)
            wave = sum(np.sin(harmonic * phase) / harmonic**1.5 for harmonic in range(1, 7))
            at = int(start * RATE)
            total[at : at + len(time)] += wave * shape
    return _level(total[:samples])


def _level(sound: NDArray[np.float64]) -> Sound:
    return np.asarray(sound / np.sqrt(np.mean(np.square(sound))), np.float32)
