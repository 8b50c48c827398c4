"""What a stream of code2wav keeps of its past, on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lluda.backends.wgpu.gpu import Buffer, Gpu


@dataclass(frozen=True, slots=True)
class Past:
    """``rows`` rows of ``width`` floats that stand above a run's new ones in ``buffer``, of which ``new`` are made.
    ``before``: rows of the past that the run reads, as many or, where there is none yet, 0."""

    buffer: Buffer
    rows: int
    width: int
    new: int
    before: int


class Stream:
    """All pasts one behind the other; zeros at first."""

    def __init__(self, gpu: Gpu, pasts: Sequence[Past]) -> None:
        self._gpu = gpu
        self._sizes = [4 * past.rows * past.width for past in pasts]
        self._buffer = gpu.buffer(sum(self._sizes))

    def load(self, pasts: Sequence[Past]) -> None:
        """Put them where a run reads them, behind what was submitted before."""
        self._copy(pasts, load=True)

    def keep(self, pasts: Sequence[Past]) -> None:
        """Keep the last rows of a run."""
        self._copy(pasts, load=False)

    def _copy(self, pasts: Sequence[Past], *, load: bool) -> None:
        encoder, offset = self._gpu.encoder(), 0
        for past, size in zip(pasts, self._sizes, strict=True):
            row = 4 * past.width
            if not load:
                first = past.before + past.new - past.rows
                encoder.copy_buffer_to_buffer(past.buffer.handle, first * row, self._buffer.handle, offset, size)
            elif past.before:
                encoder.copy_buffer_to_buffer(self._buffer.handle, offset, past.buffer.handle, 0, size)
            offset += size
        self._gpu.submit(encoder.finish())
