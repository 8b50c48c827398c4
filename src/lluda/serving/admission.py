"""Who may run: so many sequences at once, so many in line behind them, first come first served."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from lluda.serving.http.errors import RETRY_SECONDS, ApiError, unavailable
from lluda.serving.limits import Limits


@dataclass(slots=True, eq=False)
class _Place:
    """A request in line."""

    sequences: int
    admitted: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Admission:
    """Places for ``running`` sequences and a line of ``waiting`` ones. For one event loop."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._line: deque[_Place] = deque()
        self.running = 0

    @property
    def waiting(self) -> int:
        """Sequences in line."""
        return sum(place.sequences for place in self._line)

    @asynccontextmanager
    async def place(self, sequences: int, *, first: bool = False) -> AsyncIterator[None]:
        """Hold places for so many sequences, waited for; ``first``: before all that waits, however much that is.

        ApiError: 429 ``queue_full``; 503 ``queue_timeout`` after ``queue_seconds`` in line.
        """
        sequences = min(sequences, self._limits.running)
        await self._enter(sequences, first)
        try:
            yield
        finally:
            self.running -= sequences
            self._advance()

    async def _enter(self, sequences: int, first: bool) -> None:
        if (first or not self._line) and self.running + sequences <= self._limits.running:
            self.running += sequences
            return
        if not first and self.waiting + sequences > self._limits.waiting:
            raise ApiError(
                429,
                "queue_full",
                f"{self.running} sequences run and {self.waiting} wait, which is all this server takes; try again",
                headers={"retry-after": str(RETRY_SECONDS)},
            )
        place = _Place(sequences)
        (self._line.appendleft if first else self._line.append)(place)
        try:
            async with asyncio.timeout(self._limits.queue_seconds):
                await place.admitted
        except BaseException as error:
            self._leave(place)
            if isinstance(error, TimeoutError):
                waited = f"the request waited {self._limits.queue_seconds:g} s without being admitted; try again later"
                raise unavailable("queue_timeout", waited) from None
            raise

    def _leave(self, place: _Place) -> None:
        """Out of the line, or off the place that it was given meanwhile."""
        if place in self._line:
            self._line.remove(place)
        elif place.admitted.done() and not place.admitted.cancelled():
            self.running -= place.sequences
        self._advance()

    def _advance(self) -> None:
        while self._line and self.running + self._line[0].sequences <= self._limits.running:
            place = self._line.popleft()
            if not place.admitted.done():
                self.running += place.sequences
                place.admitted.set_result(None)
