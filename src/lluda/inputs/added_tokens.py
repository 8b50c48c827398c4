"""Added tokens: the ones a tokenizer finds by their spelling, before the text is split into words."""

from __future__ import annotations

import re
from bisect import bisect_left
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
        self._phases = [(_any_of([*ids]), ids) for ids in (verbatim, normalised)]
        self._all = _Spellings([*verbatim, *normalised])
        self._special = _Spellings([token.text for token in tokens if token.special])

    def split(self, text: str, mark: str = "") -> Iterator[int | str]:
        """``text`` as ids of added tokens and the non-empty texts between them. What `disarm` marked with ``mark`` (one
        character) is none."""
        (verbatim, ids), (normalised, normalised_ids) = self._phases
        for piece in _cut(text, verbatim, ids, 2 * mark):
            if isinstance(piece, str) and normalised_ids:
                yield from _cut(self._normalise(piece), normalised, normalised_ids, 2 * mark)
            else:
                yield piece

    def disarm(self, text: str, mark: str, *, special_only: bool) -> str:
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


class _Spellings:
    """Finds where spellings start, overlapping ones and unfinished ones at the end included."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._start = re.compile(f"(?={_any_of(texts).pattern})")
        self._sorted = sorted(texts)
        self._longest = max(map(len, texts), default=0)

    def positions(self, text: str) -> set[int]:
        found = {match.start() for match in self._start.finditer(text)}
        ends = range(max(0, len(text) - self._longest), len(text))
        return found | {position for position in ends if self._is_beginning(text[position:])}

    def _is_beginning(self, part: str) -> bool:
        """Whether a spelling starts with ``part``; such spellings lie right behind it in order."""
        place = bisect_left(self._sorted, part)
        return place < len(self._sorted) and self._sorted[place].startswith(part)


def _cut(text: str, pattern: re.Pattern[str], ids: dict[str, int], disarmed: str) -> Iterator[int | str]:
    start = position = 0
    while match := pattern.search(text, position):
        if disarmed and text.startswith(disarmed, max(0, match.start() - len(disarmed)), match.start()):
            position = match.start() + 1
            continue
        if match.start() > start:
            yield text[start : match.start()]
        yield ids[match.group()]
        start = position = match.end()
    if start < len(text):
        yield text[start:]


def _any_of(texts: Sequence[str]) -> re.Pattern[str]:
    """A pattern for the leftmost and there the longest of ``texts``; one that never matches if there are none."""
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) if texts else r"(?!)")
