"""Keys and values of a sequence without an end whose layers have a window: constant memory."""

from __future__ import annotations

import torch
from torch import Tensor


class SlidingCache:
    """Implements ``backends.blocks.KeyValueStore`` for windowed attention: at least the last ``window - 1`` positions.

    ``length`` counts the stored positions, the last ones of the sequence; earlier ones are overwritten.
    ``shape`` is layers, key heads, head_dim; a step may have ``rows`` rows at most.
    """

    def __init__(
        self, shape: tuple[int, int, int], *, window: int, rows: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        layers, kv_heads, head_dim = shape
        self.length = 0
        self._needed = window - 1
        keys, values = torch.empty((2, layers, kv_heads, self._needed + rows, head_dim), dtype=dtype, device=device)
        self._buffers = keys, values

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
