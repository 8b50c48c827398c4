"""Added tokens: the ones a tokenizer finds by their spelling, before the text is split into words."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
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
        normalised = {normalise(token.text): token.id for token in tokens if token.normalized}
        verbatim = {token.text: token.id for token in tokens if not token.normalized}
        self._phases = [(_Spellings([*ids]), ids) for ids in (verbatim, normalised)]
        self._all = _Spellings([*verbatim, *normalised])
        self._special = _Spellings([token.text for token in tokens if token.special])

    def split(self, text: str, mark: str = "") -> Iterator[int | str]:
        """``text`` as ids of added tokens and the non-empty texts between them. What `escape` marked with ``mark`` (one
        character) is none."""
        (verbatim, ids), (normalised, normalised_ids) = self._phases
        for piece in _cut(text, verbatim, ids, 2 * mark):
            if isinstance(piece, str) and normalised_ids:
                yield from _cut(self._normalise(piece), normalised, normalised_ids, 2 * mark)
            else:
                yield piece

    def escape(self, text: str, mark: str, *, special_only: bool) -> str:
        """``text`` with ``mark`` after the first character of each spelling, and twice before it if that character is a
        token by itself, so that `split` finds none, whatever is put before and after.

        An end of the text that another text could complete to a spelling counts as one. With ``special_only`` the
        spellings of tokens that are not special keep their meaning.
        """
        spellings = self._special if special_only else self._all
        if self._phases[1][1]:
            text = self._normalise(text)  # or a spelling could arise when `split` normalises
        parts, start = [], 0
        for position in sorted(spellings.positions(text)):
            first = text[position]
            parts += [text[start:position], 2 * mark if first in self.by_text else "", first, mark]
            start = position + 1
        return "".join([*parts, text[start:]])


_BEGINNING = 4
"""Characters of a spelling that the pattern looks for; a pattern of whole spellings takes seconds to compile where they
are many and long."""


class _Spellings:
    """Finds the places of some texts in another."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._sorted = sorted(set(texts))
        self._longest = max(map(len, texts), default=0)
        beginnings = sorted({text[:_BEGINNING] for text in self._sorted})
        self._beginning = re.compile(f"(?={'|'.join(map(re.escape, beginnings))})" if texts else r"(?!)")
        self._shorter = self._longest_beginnings()

    def search(self, text: str, start: int) -> tuple[int, int] | None:
        """Start and end of the leftmost spelling from ``start`` on, there the longest; None if there is none."""
        while match := self._beginning.search(text, start):
            start = match.start()
            length = self._length_at(text, start)
            if length:
                return start, start + length
            start += 1
        return None

    def positions(self, text: str) -> set[int]:
        """Where spellings start, overlapping ones and unfinished ones at the end included."""
        starts = (match.start() for match in self._beginning.finditer(text))
        found = {start for start in starts if self._length_at(text, start)}
        ends = range(max(0, len(text) - self._longest), len(text))
        return found | {position for position in ends if self._is_beginning(text[position:])}

    def _length_at(self, text: str, start: int) -> int:
        """Characters of the longest spelling that begins at ``start``; 0 if none does.

        In order it lies at or before the text from there on, and all spellings between the two begin with it.
        """
        part = text[start : start + self._longest]
        place = bisect_right(self._sorted, part) - 1
        while place >= 0 and not part.startswith(self._sorted[place]):
            place = self._shorter[place]
        return len(self._sorted[place]) if place >= 0 else 0

    def _longest_beginnings(self) -> list[int]:
        """For each spelling in order, the place of the longest other one that it begins with; -1 if there is none."""
        found: list[int] = []
        open_places: list[int] = []
        for place, text in enumerate(self._sorted):
            while open_places and not text.startswith(self._sorted[open_places[-1]]):
                open_places.pop()
            found.append(open_places[-1] if open_places else -1)
            open_places.append(place)
        return found

    def _is_beginning(self, part: str) -> bool:
        """Whether a spelling starts with ``part``; such spellings lie right behind it in order."""
        place = bisect_left(self._sorted, part)
        return place < len(self._sorted) and self._sorted[place].startswith(part)


def _cut(text: str, spellings: _Spellings, ids: dict[str, int], escaped: str) -> Iterator[int | str]:
    start = position = 0
    while found := spellings.search(text, position):
        first, end = found
        if escaped and text.startswith(escaped, max(0, first - len(escaped)), first):
            position = first + 1
            continue
        if first > start:
            yield text[start:first]
        yield ids[text[first:end]]
        start = position = end
    if start < len(text):
        yield text[start:]
