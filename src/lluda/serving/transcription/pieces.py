"""Where a long recording is cut: in pauses, so that no word is, and nothing is left out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lluda.engine.listening.vad import CHUNK_SECONDS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

THRESHOLD = 0.5
"""Probability from which a chunk counts as speech."""

PAUSE_SECONDS = 0.2
_BELOW = 0.15  # under the threshold: a chunk is quiet; Silero's own hysteresis
_LEAST, _MOST = 8 / 30, 28 / 30  # of the window


@dataclass(frozen=True, slots=True)
class Piece:
    """Chunks ``start`` to ``end`` of a recording. ``speech``: their mean probability; ``silent``: none of them could be
    speech."""

    start: int
    end: int
    speech: float
    silent: bool


def cut(
    probabilities: NDArray[np.float32],
    window_seconds: float,
    threshold: float = THRESHOLD,
    pause_seconds: float = PAUSE_SECONDS,
) -> list[Piece]:
    """Pieces of a recording whose chunks are speech with ``probabilities [chunks]``, in order and without gaps.

    What is longer than ``window_seconds`` is cut after 8 to 28 thirtieths of it: in the middle of the longest pause
    there that lasts ``pause_seconds``, else where speech is least likely.
    """
    quiet_below = max(threshold - _BELOW, 0.01)
    window = max(math.ceil(window_seconds / CHUNK_SECONDS), 4)
    least, most = int(window * _LEAST), int(window * _MOST)
    shortest = pause_seconds / CHUNK_SECONDS
    pieces: list[Piece] = []
    start, count = 0, len(probabilities)
    while start < count:
        end = count
        if count - start > window:
            low = start + least
            end = low + _quietest(probabilities[low : start + most], quiet_below, shortest)
        inside = probabilities[start:end]
        pieces.append(Piece(start, end, float(inside.mean()), bool((inside < quiet_below).all())))
        start = end
    return pieces


def _quietest(probabilities: NDArray[np.float32], quiet_below: float, shortest: float) -> int:
    """The chunk before which to cut; the later one of two pauses of one length."""
    pauses = [pause for pause in _runs(probabilities < quiet_below) if pause[1] - pause[0] >= shortest]
    if pauses:
        first, last = max(pauses, key=lambda pause: (pause[1] - pause[0], pause[0]))
        return max((first + last) // 2, 1)
    return max(int(probabilities.argmin()), 1)


def _runs(flags: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Begin and end of each run of true values."""
    import numpy as np

    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False]))))
    return zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
