"""A bound on speech that does not come to its end: talkers have been seen to go on for minutes after a short text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

from lluda.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class SpeechGuard:
    """Speech may take ``floor_seconds``, and ``seconds_per_token`` more for each token of its text.

    The defaults are several times what anyone takes. English has three to five tokens a second; digits, which are
    tokens by themselves, take half a second each; and one token may be an alphabet to spell, which the floor is for.

    Raises:
        InvalidRequest: a negative or no finite number, or both zero.
    """

    floor_seconds: float = 15.0
    seconds_per_token: float = 1.0

    def __post_init__(self) -> None:
        for name in ("floor_seconds", "seconds_per_token"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < math.inf:
                raise InvalidRequest(f"speech guard: {name} must be a number of seconds from 0, not {value!r:.60}")
        if not self.floor_seconds + self.seconds_per_token:
            raise InvalidRequest("speech guard: both numbers are 0, so nothing could be said; give one of them")

    @classmethod
    def parse(cls, text: str) -> SpeechGuard | None:
        """From ``15,1``: the two numbers; None from ``off``. InvalidRequest: another text."""
        if text == "off":
            return None
        try:
            floor, rate = (float(number) for number in text.split(","))
        except ValueError:
            raise InvalidRequest(
                f"speech guard {text!r:.60} is neither off nor two numbers of seconds: of any speech, and more for "
                "each token of its text, as 15,1"
            ) from None
        return cls(floor, rate)

    @property
    def option(self) -> str:
        """The text that `parse` reads."""
        return f"{self.floor_seconds:g},{self.seconds_per_token:g}"

    def seconds(self, tokens: int) -> float:
        """Seconds that a text of so many tokens may be spoken."""
        return self.floor_seconds + self.seconds_per_token * tokens

    def describe(self) -> str:
        """The bound in words."""
        return f"{self.floor_seconds:g} s and {self.seconds_per_token:g} s for each token of its text"
