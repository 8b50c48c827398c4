"""What waits to be sent to one client, and the task that sends it."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from starlette.websockets import WebSocket

    from lluda.serving.limits import Limits
    from lluda.serving.realtime.events.server_events import ServerEvent


class _Waiting(msgspec.Struct):
    """``response``: the one whose end makes this worthless; ``sent`` is called when it has left."""

    message: str
    response: str | None
    sent: Callable[[], object] | None


class Outbox:
    """Events in order. A client that does not read, so that more than `Limits.realtime_unread_bytes` wait or one event
    takes `Limits.write_stall_seconds`, is given up: ``overflow`` is set, and nothing is sent any more."""

    def __init__(self, socket: WebSocket, limits: Limits, renamed: Callable[[ServerEvent], Any]) -> None:
        """``renamed`` gives an event as the client calls it; None: it does not know it."""
        self._socket, self._limits, self._renamed = socket, limits, renamed
        self._waiting: deque[_Waiting] = deque()
        self._bytes = 0
        self._numbers, self._salt = 0, secrets.token_hex(6)
        self._changed = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self.overflow = asyncio.Event()

    def put(self, event: ServerEvent, response: str | None = None, sent: Callable[[], object] | None = None) -> None:
        """To be sent, unless `drop` is told of ``response`` before."""
        if self.overflow.is_set():
            return
        self._numbers += 1
        event.event_id = f"event_{self._salt}{self._numbers}"
        named = self._renamed(event)
        if named is None:
            return
        message = msgspec.json.encode(named).decode()
        self._waiting.append(_Waiting(message, response, sent))
        self._bytes += len(message)
        if self._bytes > self._limits.realtime_unread_bytes:
            self._give_up()
        self._empty.clear()
        self._changed.set()

    def drop(self, response: str) -> None:
        """Forget what waits of a response."""
        kept = [one for one in self._waiting if one.response != response]
        self._waiting = deque(kept)
        self._bytes = sum(len(one.message) for one in kept)

    async def send(self) -> None:
        """Send what comes, until cancelled or `overflow`. RuntimeError and starlette's WebSocketDisconnect: the client
        has left."""
        while not self.overflow.is_set():
            while self._waiting and not self.overflow.is_set():
                one = self._waiting.popleft()
                self._bytes -= len(one.message)
                try:
                    async with asyncio.timeout(self._limits.write_stall_seconds):
                        await self._socket.send_text(one.message)
                except TimeoutError:
                    self._give_up()
                    return
                if one.sent is not None:
                    one.sent()
            self._changed.clear()
            self._empty.set()
            await self._changed.wait()

    async def emptied(self) -> None:
        """Wait until nothing waits."""
        await self._empty.wait()

    def _give_up(self) -> None:
        self._waiting.clear()
        self._bytes = 0
        self.overflow.set()
