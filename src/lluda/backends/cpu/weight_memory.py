"""Memory for weights that are made at load: on huge pages where the system has them.

Decoding streams through all weights once a token. With 4 KiB pages the hardware's prefetchers stop at each page's end
and translations are missed; 2 MiB pages gave 10 % more bandwidth (journal/08-benchmarks.md). One matrix alone is rarely
large enough for them, so matrices share larger pieces.
"""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

_ALIGNMENT = 64
_PIECE_BYTES = 64 << 20
_HUGE_PAGE_BYTES = 2 << 20


class WeightMemory:
    """Gives out memory piece by piece; a piece goes back to the system once no tensor uses it any more."""

    def __init__(self) -> None:
        self._piece = torch.empty(0, dtype=torch.uint8)

    def allocate(self, nbytes: int) -> Tensor:
        """uint8 ``[nbytes]`` that begins at a multiple of 64 bytes, of unknown content. MemoryError: there is none."""
        if nbytes > len(self._piece):
            self._piece = _huge_pages(max(nbytes, _PIECE_BYTES))
        taken, self._piece = self._piece[:nbytes], self._piece[-(-nbytes // _ALIGNMENT) * _ALIGNMENT :]
        return taken


def _huge_pages(nbytes: int) -> Tensor:
    """Untouched memory costs nothing, so what is over at the end of a piece is only address space."""
    whole = -(-nbytes // _HUGE_PAGE_BYTES) * _HUGE_PAGE_BYTES
    try:
        memory = mmap.mmap(-1, whole)
    except OSError as error:
        raise MemoryError(f"no memory for {nbytes:,} bytes of weights") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)
