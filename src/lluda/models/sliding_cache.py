"""Keys and values of a sequence without an end whose layers have a window: constant memory."""

from __future__ import annotations

from torch import Tensor

from lluda.backends.backend import CacheLayout, ComputeBackend
from lluda.backends.batch import RowsElsewhere


class SlidingCache:
    """Implements ``backends.batch.KeyValueStore`` for windowed attention: at least the last ``window - 1`` positions.

    ``length`` counts the stored positions, the last ones of the sequence; earlier ones are overwritten. A step may have
    ``rows`` rows at most.
    """

    def __init__(self, backend: ComputeBackend, layout: CacheLayout, *, window: int, rows: int) -> None:
        self.length = 0
        self.elsewhere: RowsElsewhere | None = None
        self._needed = window - 1
        self._buffers = backend.new_cache(layout, self._needed + rows)

    @property
    def nbytes(self) -> int:
        """Bytes allocated; constant."""
        return sum(buffer.nbytes for buffer in self._buffers)

    def reserve(self, rows: int) -> tuple[Tensor, Tensor]:
        """See ``KeyValueStore.reserve``. At the end of the buffer, the rows of the window move to the front."""
        capacity = self._buffers[0].shape[2]
        if self.length + rows > capacity:
            assert self._needed + rows <= capacity, f"a step of {rows} rows is longer than this cache was made for"
            for buffer in self._buffers:
                buffer[:, :, : self._needed] = buffer[:, :, self.length - self._needed : self.length].clone()
            self.length = self._needed
        return self._buffers

    def advance(self, rows: int) -> None:
        """Count ``rows`` positions that every layer has stored."""
        self.length += rows
