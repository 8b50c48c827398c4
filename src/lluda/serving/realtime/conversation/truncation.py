"""What a user heard of an answer, where only the seconds of its sound are known.

Text and sound of an answer are not aligned: the talker gets one token a frame, and says three to five a second. So the
share of the text is taken that the heard sound is of all of it.
"""

from __future__ import annotations

_BYTES_A_SECOND = 15
"""UTF-8 bytes that speech says a second, about, in most languages."""

_IDEOGRAPHS = "\u2e80"
"""From here on, a character is a word."""


def heard_text(text: str, heard_seconds: float, seconds: float) -> str:
    """What was heard of ``text`` in the first ``heard_seconds`` of its ``seconds`` of sound, cut back to the end of a
    word."""
    if heard_seconds <= 0:
        return ""
    if heard_seconds >= seconds:
        return text
    count = int(len(text) * heard_seconds / seconds)
    while 0 < count < len(text) and _is_inside_word(text[count - 1], text[count]):
        count -= 1
    return text[:count].rstrip()


def likely_seconds(text: str, made_seconds: float) -> float:
    """Of the sound of ``text``, of which at least ``made_seconds`` were made."""
    return max(made_seconds, len(text.encode()) / _BYTES_A_SECOND)


def _is_inside_word(before: str, after: str) -> bool:
    return all((one.isalnum() or one in "'’-") and one < _IDEOGRAPHS for one in (before, after))
