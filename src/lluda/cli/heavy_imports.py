"""Importing torch and what needs it: it takes seconds and 200 MB, and may end the process if memory is short."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

from lluda.cli.interrupts import plain_signals
from lluda.errors import LludaError

_ADDRESS_SPACE, _OF_A_THREAD = 1 << 30, 64 << 20
"""Bytes that the libraries map to start: with fewer, OpenBLAS ends the process, or an import fails halfway."""

_KERNEL_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
_KERNELS = "64"
"""Of oneDNN's kernels, and of those that torch asked it for: one for each shape. Both keep 1,024 of some 40 KB each,
and sound has ever new shapes: a spoken conversation grew by 80 KB a turn."""


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Around imports of torch. A signal ends the process at once (`plain_signals`), so no unfinished work may be open.

    LludaError: the limit on this process's address space leaves too little for them.
    """
    bound_kernel_caches()
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    least = _ADDRESS_SPACE + _OF_A_THREAD * (os.cpu_count() or 1)
    if limit == resource.RLIM_INFINITY:
        with plain_signals():
            yield
        return
    if limit < least:
        raise _too_little(limit, least)
    try:
        with plain_signals():
            yield
    except (ImportError, SystemError, OSError, MemoryError) as error:
        raise _too_little(limit, least) from error


def bound_kernel_caches() -> None:
    """Let no more than `_KERNELS` be kept, unless the environment says how many; read when torch is imported."""
    for name in _KERNEL_CACHES:
        os.environ.setdefault(name, _KERNELS)


def _too_little(limit: int, least: int) -> LludaError:
    return LludaError(
        f"address space is limited to {limit:,} bytes (ulimit -v), in which torch cannot start: it takes about "
        f"{least:,}, and the model's files come on top; raise the limit"
    )
