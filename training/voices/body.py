"""Bodies: hibari's voice with another pitch and another vocal tract is another speaker, whose sounds and times are as
well known. Only the parts that it is synthesised of are changed, so nothing of the sound is lost."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Body(NamedTuple):
    """Factors of the pitch and of the formants: a longer vocal tract has lower ones."""

    pitch: float = 1.0
    formants: float = 1.0


BODIES = {"lark": Body(), "rook": Body(0.65, 0.88)}
"""The speakers. Lark is the voice as it is, a woman's; rook sounds like a man's."""


def body_of(name: str) -> Body:
    """A speaker's, or of "body-65-88" 0.65 of the pitch and formants at 0.88 of their frequencies.

    Raises:
        ValueError: neither of them.
    """
    if name in BODIES:
        return BODIES[name]
    match name.split("-"):
        case ["body", pitch, formants]:
            return Body(int(pitch) / 100, int(formants) / 100)
    raise ValueError(f"the body is {name!r}: it is one of {', '.join(BODIES)} or body-PITCH-FORMANTS in a hundred")


def in_body(body: Body, parts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """What `hibari.dsp.synth` makes sound of, for a body: the harmonics' level and phase, the noise's level, the level
    and phase of the rest (all ``[bins, frames]``), and the pitch ``[frames]`` in hertz, 0 where there is none."""
    harmonics, turned, noise, rest, phase, pitch = parts
    if body.formants != 1:
        harmonics, turned, noise, rest = (_stretched(one, body.formants) for one in (harmonics, turned, noise, rest))
    return [harmonics, turned, noise, rest, phase, pitch * np.float32(body.pitch)]


def _stretched(rows: np.ndarray, factor: float) -> np.ndarray:
    """``[bins, frames]`` with what was at a frequency at ``factor`` times it; above, the last bin goes on."""
    at = np.minimum(np.arange(len(rows)) / factor, len(rows) - 1)
    below = at.astype(int)
    share = (at - below).astype(np.float32)[:, None]
    return rows[below] * (1 - share) + rows[np.minimum(below + 1, len(rows) - 1)] * share
