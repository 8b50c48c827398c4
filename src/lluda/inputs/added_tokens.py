"""Added tokens: the ones a tokenizer finds by their spelling, before the text is split into words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AddedToken:
    """One token matched by its spelling. ``special`` (a control token) is left out of decoded text. ``normalized``
    is looked for in the normalised text, after all others; the rest in the text as it was given."""

    id: int
    text: str
    special: bool
    normalized: bool = False


class AddedTokens:
    """The added tokens of one tokenizer and how they are found: leftmost first, the longest of those."""

    def __init__(self, tokens: Sequence[AddedToken], normalise: Callable[[str], str]) -> None:
        self.by_text = {token.text: token for token in tokens}
        self.by_id = {token.id: token for token in tokens}
        self.special_ids = frozenset(token.id for token in tokens if token.special)
        self._normalise = normalise
        self._verbatim = _any_of([token.text for token in tokens if not token.normalized])
        self._normalised = _any_of([normalise(token.text) for token in tokens if token.normalized])
        self._id_of_match = {normalise(token.text): token.id for token in tokens if token.normalized}
        self._id_of_match |= {token.text: token.id for token in tokens if not token.normalized}

    def split(self, text: str, mark: str = "") -> Iterator[int | str]:
        """``text`` as ids of added tokens and the non-empty texts between them.

        A spelling that starts right after ``mark`` (one character; see `prompt`) is not a token.
        """
        for piece in self._cut(text, self._verbatim, mark):
            if isinstance(piece, int) or self._normalised is None:
                yield piece
            else:
                yield from self._cut(self._normalise(piece), self._normalised, mark)

    def _cut(self, text: str, pattern: re.Pattern[str] | None, mark: str) -> Iterator[int | str]:
        start = 0
        for match in _unmarked(pattern, text, mark) if pattern else ():
            if match.start() > start:
                yield text[start : match.start()]
            yield self._id_of_match[match.group()]
            start = match.end()
        if start < len(text):
            yield text[start:]


def _unmarked(pattern: re.Pattern[str], text: str, mark: str) -> Iterator[re.Match[str]]:
    position = 0
    while match := pattern.search(text, position):
        if mark and text[match.start() - 1 : match.start()] == mark:
            position = match.start() + 1
        else:
            yield match
            position = match.end()


def _any_of(spellings: Sequence[str]) -> re.Pattern[str] | None:
    if not spellings:
        return None
    return re.compile("|".join(re.escape(text) for text in sorted(spellings, key=len, reverse=True)))
