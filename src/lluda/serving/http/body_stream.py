"""An answer whose bytes are sent as they are made."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lluda.serving.http.connection import IS_CLOSING
from lluda.serving.http.errors import ClientDisconnected


class StreamBroken(Exception):
    """An answer that broke off after it had begun: the connection is closed, so that the client notices."""


class BodyStream(Response):
    """Sends what ``chunks`` yields.

    The answer begins with the first chunk: an error before it is an answer with a status of its own. An error after it
    closes the connection. ``chunks`` is closed in any case, in the task that iterates it.
    """

    def __init__(
        self, chunks: AsyncGenerator[bytes], media_type: str, headers: Mapping[str, str] | None = None
    ) -> None:
        self.chunks = chunks
        self.status_code, self.media_type, self.background = 200, media_type, None
        self.begun = False
        self.init_headers(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """As ASGI has it."""
        is_closing = scope.get("extensions", {}).get(IS_CLOSING, bool)
        try:
            async with aclosing(self.chunks) as chunks:
                await self._send_all(chunks, send, is_closing)
        except (ClientDisconnected, StreamBroken):
            raise
        except Exception as error:
            if not self.begun:
                raise
            raise StreamBroken from error  # interrupted while the client was behind
        await self._begin(send)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_all(self, chunks: AsyncGenerator[bytes], send: Send, is_closing: Callable[[], bool]) -> None:
        try:
            async for chunk in chunks:
                if is_closing():
                    raise ClientDisconnected
                await self._begin(send)
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except ClientDisconnected:
            raise
        except Exception as error:
            if not self.begun:
                raise
            await self._break_off(error, send)

    async def _begin(self, send: Send) -> None:
        if not self.begun:
            self.begun = True
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})

    async def _break_off(self, error: Exception, send: Send) -> None:  # noqa: ARG002
        raise StreamBroken from error
