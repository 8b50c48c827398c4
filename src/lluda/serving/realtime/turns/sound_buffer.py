"""The user's sound that was appended and is not forgotten yet, by the numbers of its samples."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class SoundBuffer:
    """Mono float32 at 16 kHz. ``start`` and ``end`` number its first sample, and the next one after its last, from the
    session's first on."""

    def __init__(self) -> None:
        self.start = self.end = 0
        self._pieces: deque[NDArray[np.float32]] = deque()
        self._arrivals: deque[tuple[int, float]] = deque(maxlen=512)

    def add(self, samples: NDArray[np.float32]) -> None:
        """More of it, as it comes."""
        if len(samples):
            self._pieces.append(samples)
            self.end += len(samples)
            self._arrivals.append((self.end, time.monotonic()))

    def between(self, start: int, end: int) -> NDArray[np.float32]:
        """A copy of the samples ``[start, end)``, those of them that are there."""
        found = [np.zeros(0, np.float32)]
        at = self.start
        for piece in self._pieces:
            if at < end and at + len(piece) > start:
                found.append(piece[max(0, start - at) : end - at])
            at += len(piece)
        return np.concatenate(found)

    def forget(self, sample: int) -> None:
        """The samples before ``sample`` are not needed any more."""
        while self._pieces and self.start < sample:
            piece = self._pieces[0]
            count = min(len(piece), sample - self.start)
            if count == len(piece):
                self._pieces.popleft()
            else:
                self._pieces[0] = piece[count:]
            self.start += count

    def arrival(self, sample: int) -> float:
        """When ``sample`` came, by ``time.monotonic``; of one that came long ago, a later time."""
        return next((at for end, at in self._arrivals if end >= sample), time.monotonic())
