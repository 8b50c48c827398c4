"""How far ahead of the listener an answer's sound is sent."""

from __future__ import annotations

import asyncio
import time

LEAD_SECONDS = 3.0
"""What is sent ahead is thrown away when the user begins to speak."""


class SpeechPace:
    """A listener plays from the first sound on. ``sent`` seconds were handed out so far; ``waited`` is how long the
    listener had nothing to play meanwhile."""

    def __init__(self) -> None:
        self.sent = self.waited = 0.0
        self._began: float | None = None

    @property
    def real_time_factor(self) -> float:
        """Seconds that a second of the sound took, where a listener had to wait; 1 where nobody did."""
        return 1.0 + self.waited / self.sent if self.sent else 1.0

    @property
    def lead(self) -> float:
        """Seconds of sound that the listener has not played."""
        return 0.0 if self._began is None else max(0.0, self._began + self.sent - time.monotonic())

    async def take(self, seconds: float) -> None:
        """Wait until so much more may be sent."""
        now = time.monotonic()
        if self._began is None:
            self._began = now
        elif self._began + self.sent < now:
            self.waited += now - self.sent - self._began
            self._began = now - self.sent
        ahead = self.lead + seconds - LEAD_SECONDS
        if ahead > 0:
            await asyncio.sleep(ahead)
        self.sent += seconds
