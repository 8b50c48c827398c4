"""How long a silence ends a turn: by eagerness and, where something judges it, by how likely the turn is over.

What judges it is the first token that the thinker would answer with, whose rows are computed at a pause anyway. It is
told by two things: a question that is not over is answered as one that was not understood, and less decidedly. Chosen
by journal/20-realtime.md, Turns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Eagerness = Literal["low", "medium", "high"]

Judge = Callable[[int], "float | None"]
"""The probability, 0 to 1, that the turn is over whose sound ends before this sample (that of `SpeechPaused`), or None:
not known yet, and it is asked again 32 ms of sound later. It must return at once."""


@dataclass(frozen=True, slots=True)
class Waits:
    """Milliseconds of silence that end a turn. ``unjudged``: where nothing judges it, or has not yet. ``judged``: for
    each least probability, falling, the silence that is enough; ``undecided``: below all of these."""

    unjudged: int
    judged: tuple[tuple[float, int], ...]
    undecided: int


WAITS: Mapping[Eagerness, Waits] = MappingProxyType(
    {
        "low": Waits(1200, ((0.99, 500), (0.8, 1200)), 2500),
        "medium": Waits(640, ((0.95, 250), (0.5, 640)), 1600),
        "high": Waits(320, ((0.8, 200), (0.3, 320)), 1000),
    }
)

ALTERNATIVES = 20
"""Likeliest first tokens that `likely_over` looks at."""


def silence_ms(eagerness: Eagerness, probability: float | None) -> int:
    """The silence that ends a turn of which ``probability`` says how likely it is over (None: nobody knows)."""
    waits = WAITS[eagerness]
    if probability is None:
        return waits.unjudged
    return next((wait for least, wait in waits.judged if probability >= least), waits.undecided)


def likely_over(top: Sequence[tuple[int, float]], unclear: int) -> float:
    """The probability that a turn is over, by the likeliest first tokens of an answer to it.

    ``top``: ids and log-probabilities of `ALTERNATIVES` tokens; ``unclear``: the id that an answer to what was not
    understood begins with.
    """
    chances = {number: math.exp(logprob) for number, logprob in top}
    entropy = -sum(chance * math.log(chance) for chance in chances.values() if chance > 0)
    decided = max(0.0, 1 - entropy / math.log(ALTERNATIVES))
    return (1 - min(1.0, chances.get(unclear, 0.0))) * decided
