"""One TCP connection: what uvicorn's h11 protocol lacks in limits and timeouts.

Without them a client could hold a connection for ever with half a header, send headers of any size in one packet, a
body of a million chunks, or read nothing of an answer.
"""

from __future__ import annotations

import asyncio
import http
import sys
from typing import Any, ClassVar

import h11
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from lluda.serving.http.errors import ApiError, envelope
from lluda.serving.limits import Limits

ABORT = "lluda.abort"
"""The extension of a scope that closes its connection at once, without an end of the answer."""

IS_CLOSING = "lluda.is_closing"
"""The extension that tells whether the connection is lost or closing: what is written then goes nowhere."""

WEBSOCKET_PATHS = ("/v1/realtime",)
"""Where an upgrade to a websocket is possible."""

_LINGER_SECONDS = 1.0
"""During which what a refused client still sends is thrown away: closed at once, it would often not see the answer."""

_FREE_CHUNKS, _CHUNK_BYTES = 1000, 256
"""Beyond so many chunks, those of a body must have so many bytes on average: each takes 20 us."""


def connection_class(limits: Limits) -> type[Connection]:
    """The protocol of connections with these limits, as uvicorn takes it."""
    return type("Connection", (Connection,), {"limits": limits})


class Framing(h11.Connection):
    """h11's parser, which refuses what h11 lets through: headers that came whole but are too large or too many, both
    kinds of length at once, floods of chunks."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(h11.SERVER, limits.header_bytes)
        self._limits = limits
        self._chunks = self._bytes = 0

    def next_event(self) -> Any:
        """The next event. h11.RemoteProtocolError: the client is at fault; the hint is the status."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunks = self._bytes = 0
            self._check_request(event)
        elif isinstance(event, h11.Data):
            self._bytes += len(event.data)
            self._chunks += event.chunk_start
            if self._chunks > _FREE_CHUNKS and self._bytes < _CHUNK_BYTES * self._chunks:
                raise h11.RemoteProtocolError(f"chunks of less than {_CHUNK_BYTES} bytes on average; send larger ones")
        return event

    def _check_request(self, request: h11.Request) -> None:
        limits = self._limits
        size = len(request.target) + sum(len(name) + len(value) + 4 for name, value in request.headers)
        if size > limits.header_bytes:
            raise h11.RemoteProtocolError(f"the headers have more than {limits.header_bytes} bytes", 431)
        if len(request.headers) > limits.headers:
            raise h11.RemoteProtocolError(f"more than {limits.headers} headers", 431)
        if request.http_version not in (b"1.0", b"1.1"):
            raise h11.RemoteProtocolError("HTTP/1.1 is spoken here, no other version", 505)
        names = {name for name, _ in request.headers}
        if {b"content-length", b"transfer-encoding"} <= names:
            raise h11.RemoteProtocolError("both content-length and transfer-encoding")


class Connection(H11Protocol):
    """uvicorn's protocol with `Limits`."""

    limits: ClassVar[Limits] = Limits()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.conn = Framing(self.limits)
        self._refused = False
        self._timers: dict[str, asyncio.TimerHandle] = {}
        app = self.app

        async def with_abort(scope: Scope, receive: Receive, send: Send) -> None:
            own = {ABORT: self.abort, IS_CLOSING: self.transport.is_closing}
            scope["extensions"] = {**scope.get("extensions", {}), **own}
            await app(scope, receive, send)

        self.app = with_abort

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As asyncio has it."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            message = f"{self.limits.connections} connections are open, which is all this server takes; try again"
            self.transport.write(_raw(ApiError(503, "too_many_connections", message, headers={"retry-after": "1"})))
            self._refused = True
            self.transport.close()
        else:
            self._start("headers", self.limits.header_seconds, self._headers_late)

    def connection_lost(self, exc: Exception | None) -> None:
        """As asyncio has it."""
        for name in list(self._timers):
            self._stop(name)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """As asyncio has it."""
        if self._refused:
            return
        super().data_received(data)
        if self._refused or self.conn.their_state is not h11.IDLE:
            self._stop("headers")
        elif self.conn.trailing_data[0]:
            self._start("headers", self.limits.header_seconds, self._headers_late)

    def _should_upgrade(self) -> bool:
        return self.scope["path"] in WEBSOCKET_PATHS and super()._should_upgrade()

    def pause_writing(self) -> None:
        """As asyncio has it: the client is behind."""
        super().pause_writing()
        self._start("write", self.limits.write_stall_seconds, self.abort)

    def resume_writing(self) -> None:
        """As asyncio has it."""
        self._stop("write")
        super().resume_writing()

    def on_response_complete(self) -> None:
        """As uvicorn has it; a body that is still on its way has not for ever."""
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:
            self._start("rest", self.limits.keep_alive_seconds, self.abort)

    def handle_events(self) -> None:
        """As uvicorn has it."""
        super().handle_events()
        if self.conn.their_state is not h11.SEND_BODY:
            self._stop("rest")

    def send_400_response(self, msg: str) -> None:
        """In place of uvicorn's text: the envelope, with the status that the parser wants."""
        error = sys.exc_info()[1]
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        code = "headers_too_large" if status == 431 else "invalid_http"
        self._refuse(ApiError(status, code, f"this is not a request as HTTP has it: {error or msg}"))

    def abort(self) -> None:
        """Close at once."""
        if self.transport is not None:
            self.transport.abort()

    def abort_unfinished(self) -> None:
        """Close at once if a request is still being answered: its client reads nothing."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.abort()

    def _headers_late(self) -> None:
        waited = f"the headers were not complete after {self.limits.header_seconds:g} s"
        self._refuse(ApiError(408, "request_timeout", waited))

    def _refuse(self, error: ApiError) -> None:
        """Answer, if no answer has begun, and close; whoever works on a request of this connection is told."""
        self._refused = True
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            begun, cycle.disconnected = cycle.response_started, True
            cycle.message_event.set()
            if begun:
                self.abort()
                return
        self.transport.write(_raw(error))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self._start("linger", _LINGER_SECONDS, self.abort)

    def _start(self, name: str, seconds: float, then: Any) -> None:
        if name not in self._timers:
            self._timers[name] = self.loop.call_later(seconds, then)

    def _stop(self, name: str) -> None:
        if (timer := self._timers.pop(name, None)) is not None:
            timer.cancel()


def _raw(error: ApiError) -> bytes:
    """The answer as bytes, where h11's state allows none."""
    body = envelope(error)
    headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
    lines = "".join(f"{name}: {value}\r\n" for name, value in (headers | error.headers).items())
    reason = http.HTTPStatus(error.status).phrase
    return f"HTTP/1.1 {error.status} {reason}\r\n{lines}\r\n".encode() + body
