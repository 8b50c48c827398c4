"""Server-sent events: messages as bytes, and the answer that sends them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send

from lluda.serving.http.body_stream import BodyStream
from lluda.serving.http.errors import ApiError, fields, from_error

DONE = b"data: [DONE]\n\n"
"""Ends a stream of chat or completions."""

_PING = b": ping\n\n"
_encode = msgspec.json.Encoder().encode


def data(value: Any) -> bytes:
    """A message of ``value`` as JSON."""
    return b"data: " + _encode(value) + b"\n\n"


def event(kind: str, value: Any) -> bytes:
    """A message with its type."""
    return b"event: " + kind.encode() + b"\ndata: " + _encode(value) + b"\n\n"


def error_data(error: ApiError) -> bytes:
    """An error inside a stream, which is then over."""
    return data({"error": fields(error)})


class EventStream(BodyStream):
    """Sends the messages that ``events`` yields, each whole bytes of `data` or `event`; a comment line where nothing
    came for ``ping_seconds``, so that proxies keep the connection. An error after the first message is sent as a
    message, made by ``error_message``, and ends the stream."""

    def __init__(
        self,
        events: AsyncGenerator[bytes],
        *,
        ping_seconds: float = 15.0,
        error_message: Callable[[ApiError], bytes] = error_data,
    ) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(events, "text/event-stream", headers)  # starlette adds the charset to text types
        self._ping_seconds, self._error_message = ping_seconds, error_message

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        loop = asyncio.get_running_loop()
        sent = loop.time()

        async def timed(message: Any) -> None:
            nonlocal sent
            sent = loop.time()
            await send(message)

        async def ping() -> None:
            while True:
                await asyncio.sleep(max(0.0, sent + self._ping_seconds - loop.time()))
                if loop.time() >= sent + self._ping_seconds:
                    await self._begin(timed)
                    await timed({"type": "http.response.body", "body": _PING, "more_body": True})

        pings = loop.create_task(ping())
        try:
            await super().__call__(scope, receive, timed)
        finally:
            pings.cancel()

    async def _break_off(self, error: Exception, send: Send) -> None:
        message = self._error_message(from_error(error))
        await send({"type": "http.response.body", "body": message, "more_body": True})
