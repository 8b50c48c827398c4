"""Questions as recordings, complete or with a pause inside, and where in them speech begins and ends.

Said by programs that are installed (``apt-get install flite espeak-ng festival festvox-us-slt-hts festvox-kdlpc16k``);
the questions are held-out ones of tiny-omni's world.
"""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lluda.engine.listening.vad import RATE
from training.clip import levelled, resampled, trimmed
from training.voices.voice import open_voice
from training.world import held_out_turns

PAUSES = (300, 500, 700, 1000, 1500)
"""Milliseconds."""

BEFORE, BEHIND = RATE, 4 * RATE
"""Samples of silence around what is said."""

_FLITE = ("flite-slt", "flite-rms", "flite-awb", "flite-kal16")
_VOICES = (
    *_FLITE,
    *("festival-slt", "festival-ked", "espeak-en-us-160-50", "espeak-en-gb+f3-150-60", "espeak-en-us+m3-175-40"),
)
_FADE = RATE // 125


@dataclass(frozen=True)
class Spoken:
    """``samples`` mono at 16 kHz; speech from sample ``start`` to ``end``, with a pause of ``pause_ms`` inside, whose
    ends are ``pause`` (None: it has none). ``joined``: the pause was cut into a whole sentence; else its parts were
    said one by one, the first as if more would come."""

    text: str
    voice: str
    samples: NDArray[np.float32]
    start: int
    end: int
    pause_ms: int = 0
    pause: tuple[int, int] | None = None
    joined: bool = False

    @property
    def speech(self) -> NDArray[np.float32]:
        """What is said, without a pause."""
        if self.pause is None:
            return self.samples[self.start : self.end]
        return np.concatenate((self.samples[self.start : self.pause[0]], self.samples[self.pause[1] : self.end]))


def recordings(count: int, seed: int) -> list[Spoken]:
    """``count`` complete questions and as many with a pause, all different."""
    texts = [turn.question for turn in held_out_turns(20 * count, seed) if _is_open_to_its_end(turn.question)]
    chances = [random.Random(f"{seed} {number}") for number in range(2 * count)]
    with ThreadPoolExecutor(2) as pool:
        whole = pool.map(_whole, texts, chances[:count])
        paused = pool.map(_paused, texts[count:], chances[count:], [PAUSES[n % len(PAUSES)] for n in range(count)])
        return [*whole, *paused]


def _is_open_to_its_end(text: str) -> bool:
    """Whether no pause inside can be taken for the end: nothing is to be repeated, no courtesy follows."""
    words = text.rstrip(".?").lower().split()
    return 5 <= len(words) <= 14 and text.endswith("?") and words[-1] not in ("please", "you", "can")


def _whole(text: str, chance: random.Random) -> Spoken:
    voice = chance.choice(_VOICES)
    sound = _said(text, voice)
    return Spoken(text, voice, _surrounded(sound), BEFORE, BEFORE + len(sound))


def _paused(text: str, chance: random.Random, pause_ms: int) -> Spoken:
    words = text.split()
    after = chance.randrange(2, len(words) - 1)
    voice = chance.choice(_VOICES)
    joined = voice in _FLITE and chance.random() < 0.7
    parts = _cut(text, voice, after) if joined else None
    if parts is None:
        joined = False
        first = " ".join(words[:after]).rstrip(",") + ","
        parts = _said(first, voice), _said(" ".join(words[after:]), voice)
    begin = BEFORE + len(parts[0])
    pause = begin, begin + pause_ms * RATE // 1000
    sound = np.concatenate((parts[0], np.zeros(pause[1] - pause[0], np.float32), parts[1]))
    return Spoken(text, voice, _surrounded(sound), BEFORE, BEFORE + len(sound), pause_ms, pause, joined)


def _said(text: str, voice: str) -> NDArray[np.float32]:
    """What a voice says, at 16 kHz, without silence around it."""
    spoken = open_voice(voice)(text, 0)
    return _ready(spoken.samples, spoken.rate)


def _ready(samples: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    sound, _ = trimmed(samples, rate)
    return levelled(resampled(sound, rate, RATE), RATE)


def _cut(text: str, voice: str, after: int) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """A sentence said as one, cut behind ``after`` words; None where the voice does not tell where words begin."""
    spoken = open_voice(voice)(text, 0)
    if not spoken.starts:
        return None
    at = round(spoken.starts[after] * spoken.rate)
    whole, _ = trimmed(spoken.samples, spoken.rate)
    level = float(np.abs(_ready(spoken.samples, spoken.rate)).max() / np.abs(whole).max())
    parts = [resampled(trimmed(part, spoken.rate)[0], spoken.rate, RATE) * level for part in _split(spoken.samples, at)]
    return parts[0], parts[1]


def _split(samples: NDArray[np.float32], at: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    first, second = samples[:at].copy(), samples[at:].copy()
    fade = np.linspace(1, 0, _FADE, dtype=np.float32)
    first[-_FADE:] *= fade
    second[:_FADE] *= fade[::-1]
    return first, second


def _surrounded(sound: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.pad(sound, (BEFORE, BEHIND)).astype(np.float32)
