"""What was said in spoken answers, for messages that refer to them by id."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

SECONDS = 3600
"""How long an answer may be referred to."""


class SpokenAnswers:
    """Transcripts by the id of their sound, for an hour, of at most ``characters`` in all: the oldest go first. `keep`
    is for one thread, `transcript` for any."""

    def __init__(self, characters: int = 4 << 20, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._clock = characters, clock
        self._kept: OrderedDict[str, tuple[float, str]] = OrderedDict()
        self._characters = 0

    def keep(self, number: str, transcript: str) -> None:
        """The answer ``number`` is complete."""
        self._kept[number] = (self._clock() + SECONDS, transcript)
        self._characters += len(transcript) + len(number)
        while self._kept and (self._characters > self._limit or self._is_over(next(iter(self._kept)))):
            self._forget(next(iter(self._kept)))

    def transcript(self, number: str) -> str | None:
        """What was said there; None: not known, or no more."""
        expires, transcript = self._kept.get(number, (0.0, None))
        return transcript if expires > self._clock() else None

    def _is_over(self, number: str) -> bool:
        return self._kept[number][0] <= self._clock()

    def _forget(self, number: str) -> None:
        _, transcript = self._kept.pop(number)
        self._characters -= len(transcript) + len(number)
