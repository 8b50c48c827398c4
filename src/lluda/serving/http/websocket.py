"""One websocket: what uvicorn's protocol lacks in limits."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from lluda.serving.limits import Limits


def websocket_class(limits: Limits) -> type[WebSocketConnection]:
    """The protocol of websockets with these limits, as uvicorn takes it."""
    return type("WebSocketConnection", (WebSocketConnection,), {"limits": limits})


_LINGER_SECONDS = 5.0
"""For a client that read nothing to see why its connection is closed."""


class WebSocketConnection(WebSocketsSansIOProtocol):
    """uvicorn's protocol, which waits without end for a client that reads nothing, and answers its pings meanwhile."""

    limits: ClassVar[Limits] = Limits()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.conn.debug = False  # what is said here is no log's business
        self._stalled: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        """As asyncio has it."""
        super().data_received(data)
        if self.transport.get_write_buffer_size() > self.limits.realtime_unread_bytes:
            self.transport.abort()

    def pause_writing(self) -> None:
        """As asyncio has it: the client is behind."""
        super().pause_writing()
        seconds = self.limits.write_stall_seconds + _LINGER_SECONDS
        self._stalled = self.loop.call_later(seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """As asyncio has it."""
        super().resume_writing()
        self._stop()

    def connection_lost(self, exc: Exception | None) -> None:
        """As asyncio has it."""
        self._stop()
        super().connection_lost(exc)

    async def send(self, message: Any) -> None:
        """As ASGI has it; that the connection ends is told to a client that is behind as well."""
        if message["type"] == "websocket.close":
            self.writable.set()
        await super().send(message)

    def _stop(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
