"""Which token of its text a clip is speaking at each frame, from the seconds at which its words begin."""

from bisect import bisect_right
from collections.abc import Callable, Sequence

from training.clip import SILENCE_AFTER

FRAMES_A_SECOND = 12.5


def spoken_tokens(
    text: str, starts: Sequence[float], seconds: float, ids: Sequence[int], decode: Callable[[Sequence[int]], str]
) -> list[int]:
    """For each frame of a clip the index in `ids` of the token spoken in its middle.

    The tokens of a word take even parts of its time. -1 before the first word; ``len(ids)`` in the silence at the end.

    Args:
        text: what is said; `starts` has an entry for each of ``text.split()``.
        starts: seconds from the clip's begin.
        seconds: of the whole clip, with the silence of `clip.SILENCE_AFTER` at its end.
        ids: the tokens of the text.
        decode: ids to text, each by itself as in a row (so of ASCII text).

    Raises:
        ValueError: as many starts as words are needed.
    """
    words = text.split()
    if len(words) != len(starts):
        raise ValueError(f"{len(starts)} starts for the {len(words)} words of {text!r}")
    ends = [*starts[1:], seconds - SILENCE_AFTER]
    begins = sorted(
        begin
        for word, tokens in enumerate(_tokens_of_words(words, text, ids, decode))
        for begin in _evenly(starts[word], ends[word], tokens)
    )
    middles = [(frame + 0.5) / FRAMES_A_SECOND for frame in range(round(seconds * FRAMES_A_SECOND))]
    return [len(ids) if middle >= ends[-1] else bisect_right(begins, middle) - 1 for middle in middles]


def _evenly(start: float, end: float, parts: int) -> list[float]:
    return [start + (end - start) * part / parts for part in range(parts)]


def _tokens_of_words(
    words: Sequence[str], text: str, ids: Sequence[int], decode: Callable[[Sequence[int]], str]
) -> list[int]:
    """How many tokens begin in each word, a space before it included."""
    first, at = [], 0
    for word in words:
        at = text.index(word, at)
        first.append(max(0, at - 1))
        at += len(word)
    counts = [0] * len(words)
    begin = 0
    for one in ids:
        counts[bisect_right(first, begin) - 1] += 1
        begin += len(decode([one]))
    return counts
