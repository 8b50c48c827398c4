"""All realtime sessions of a server: how many there may be, and their end with it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from lluda.serving.http.errors import unavailable

if TYPE_CHECKING:
    from lluda.serving.limits import Limits


class Open(Protocol):
    """A session as the server sees it."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being answered."""

    def end(self, code: int, error: BaseException) -> None:
        """Tell the client ``error``, and close with ``code``."""


class Sessions:
    """For one event loop."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.slow_speech: float | None = None
        """The real-time factor of the last answer's speech, if its listener had to wait (`SpeechPace`)."""
        self._open: set[Open] = set()

    def __len__(self) -> int:
        return len(self._open)

    @contextmanager
    def place(self, session: Open) -> Iterator[None]:
        """Hold a place for ``session``. ApiError 503 ``sessions_full``."""
        if len(self._open) >= self._limits.realtime_sessions:
            words = f"{len(self._open)} realtime sessions are open, which is all this server takes; try again later"
            raise unavailable("sessions_full", words)
        self._open.add(session)
        try:
            yield
        finally:
            self._open.discard(session)

    async def drain(self, seconds: float) -> None:
        """End all sessions: each when nothing is being answered, or when ``seconds`` are over."""
        loop = asyncio.get_running_loop()
        last = loop.time() + seconds
        error = unavailable("draining", "the server is being stopped")
        while self._open and loop.time() < last:
            for session in list(self._open):
                if session.is_idle:
                    session.end(1001, error)
            await asyncio.sleep(0.05)
        self.end_all(1001, error)

    def end_all(self, code: int, error: Exception) -> None:
        """End all sessions now."""
        for session in list(self._open):
            session.end(code, error)
