"""Work that is split over processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from multiprocessing import get_context
from typing import TypeVar

Part = TypeVar("Part")
Result = TypeVar("Result")


def in_processes(make: Callable[[Part], Result], parts: Sequence[Part], jobs: int) -> list[Result]:
    """``make`` of each part, in order, by so many processes; by this one if it is one. They are forked, so that what is
    loaded is theirs; none may touch a GPU."""
    if jobs == 1:
        return [make(part) for part in parts]
    pool = get_context("fork").Pool(jobs)
    try:
        return pool.map(make, parts, chunksize=1)
    finally:
        pool.close()
        pool.join()
