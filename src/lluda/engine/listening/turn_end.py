"""How long a silence ends a turn, by eagerness and, where something judges it, by how likely the turn is over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Eagerness = Literal["low", "medium", "high"]

Judge = Callable[[int], "float | None"]
"""The probability, 0 to 1, that the turn is over whose sound ends before this sample (that of `SpeechPaused`), or None:
not known yet, and it is asked again 32 ms of sound later. It must return at once."""


@dataclass(frozen=True, slots=True)
class Waits:
    """Milliseconds of silence that end a turn. ``unjudged``: where nothing judges it. ``judged``: for each least
    probability, falling, the silence that is enough; ``undecided``: below all of these, and while none is known."""

    unjudged: int
    judged: tuple[tuple[float, int], ...]
    undecided: int


WAITS: Mapping[Eagerness, Waits] = MappingProxyType(
    {
        "low": Waits(1200, ((0.99, 500), (0.92, 1200)), 3000),
        "medium": Waits(640, ((0.97, 250), (0.88, 640)), 2000),
        "high": Waits(320, ((0.93, 200), (0.80, 320)), 1200),
    }
)


def silence_ms(eagerness: Eagerness, probability: float | None) -> int:
    """The silence that ends a turn of which ``probability`` says how likely it is over (None: not known yet)."""
    waits = WAITS[eagerness]
    if probability is not None:
        for least, wait in waits.judged:
            if probability >= least:
                return wait
    return waits.undecided
