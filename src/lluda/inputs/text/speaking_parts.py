"""A long text in parts that can be spoken one after the other."""

from __future__ import annotations

import re
from collections.abc import Iterator

MAX_PART = 1000
"""Characters of a part: a minute of speech in English, four in Chinese; the talker was made for five and a half."""

_ENDS = (
    re.compile(r"\n\s*\n"),  # of a paragraph
    re.compile(r"[.!?…][\"'”’)\]]*\s|[。！？][”』」）]*"),  # of a sentence
    re.compile(r"[,;:–—]\s|[，；：、]|\n"),  # of a clause
    re.compile(r"\s"),
)


def speaking_parts(text: str, limit: int = MAX_PART) -> Iterator[str]:
    """``text`` cut into parts of at most ``limit`` characters, nothing left out and in order: where a paragraph ends,
    else a sentence, a clause, a word, else anywhere. Parts are about half full at least, except the last."""
    start = 0
    while len(text) - start > limit:
        end = _end_of_part(text, start, limit)
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def _end_of_part(text: str, start: int, limit: int) -> int:
    for pattern in _ENDS:
        ends = [match.end() for match in pattern.finditer(text, start, start + limit)]
        if ends and ends[-1] >= start + limit // 2:
            return ends[-1]
    return start + limit
