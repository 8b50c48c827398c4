"""What was heard, piece by piece, and the text that the pieces make together."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

from lluda.engine.request import Completion, Token


@dataclass(slots=True)
class Segment:
    """One piece: ``start`` and ``end`` in seconds, ``speech`` its mean probability of speech, and what was heard."""

    start: float
    end: float
    speech: float
    tokens: list[Token] = field(default_factory=list)
    completion: Completion | None = None
    text: str = ""
    _space: str = ""

    def add(self, token: Token, *, ends: bool = False) -> None:
        """Take ``token`` with the text that came with it; ``ends``: it is no part of the text itself. White space
        before the first word is left out; that after a word comes with the next word, if there is one."""
        if not ends:
            self.tokens.append(token)
        waiting = self._space + token.text
        if not self.text:
            waiting = waiting.lstrip()
        added = waiting.rstrip()
        self._space = waiting[len(added) :] if added or self.text else ""
        self.text += added


@dataclass(slots=True)
class Transcript:
    """Segments in order; those that were silent have no text. ``audio_tokens`` of the prompts stand for sound."""

    seconds: float
    segments: list[Segment] = field(default_factory=list)
    audio_tokens: int = 0

    @property
    def text(self) -> str:
        """All of it."""
        text = ""
        for segment in self.segments:
            text += space_between(text, segment.text) + segment.text
        return text

    @property
    def completions(self) -> Sequence[Completion]:
        """Of the segments that were heard."""
        return [segment.completion for segment in self.segments if segment.completion is not None]


def space_between(before: str, after: str) -> str:
    """What joins two texts: a space, but not in scripts that are written without."""
    if not before or not after:
        return ""
    wide = any(unicodedata.east_asian_width(letter) in "WF" for letter in (before[-1], after[0]))
    return "" if wide else " "
