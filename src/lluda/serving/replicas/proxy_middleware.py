"""What Ray Serve's HTTP proxies run around every request of a client: its key is found, and Ray's own errors get the
envelope of ours.

A node's proxy loads it where the environment of its Ray has `VARIABLE` set to `CALLBACK`.
"""

from __future__ import annotations

import asyncio
import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lluda.serving.http.errors import RETRY_SECONDS, ApiError, envelope, unavailable
from lluda.serving.replicas.affinity import BODY_PATHS, SESSION_HEADER, key_of

VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
CALLBACK = "lluda.serving.replicas.proxy_middleware.middlewares"

_MOST_BYTES = 1 << 20
"""Of a body that are read here; what is longer is told from others by its beginning."""

_MOST_SECONDS = 10.0
"""For these bytes; then the replica reads on, and its limits hold."""

_REQUEST_ID = "x-request-id"


def middlewares() -> list[Middleware]:
    """What Ray Serve calls, by the name `CALLBACK`."""
    return [Middleware(ProxyMiddleware)]


class ProxyMiddleware:
    """ASGI middleware in a proxy of Ray Serve."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        read: list[Message] = []
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in BODY_PATHS:
            read = await _head(receive)
        body = b"".join(message.get("body", b"") for message in read)
        complete = bool(read) and not read[-1].get("more_body", False)
        key = key_of(scope["path"], Headers(scope=scope), body, complete=complete)
        headers = MutableHeaders(scope=scope)
        del headers[SESSION_HEADER]
        headers.setdefault(_REQUEST_ID, f"req_{secrets.token_hex(12)}")
        if key:
            headers[SESSION_HEADER] = key

        async def replay() -> Message:
            return read.pop(0) if read else await receive()

        if scope["type"] == "websocket":
            await self._app(scope, replay, send)
            return
        answer = _Answer(send)
        try:
            await self._app(scope, replay, answer)
        finally:
            if not answer.began:  # Ray's proxy ends without a word where a replica ended before it answered
                await answer.refuse(_lost(), headers[_REQUEST_ID])


async def _head(receive: Receive) -> list[Message]:
    """The first messages of a body: all of it, or what came within the limits."""
    read: list[Message] = []
    size = 0
    try:
        async with asyncio.timeout(_MOST_SECONDS):
            while size < _MOST_BYTES:
                message = await receive()
                read.append(message)
                size += len(message.get("body", b""))
                if not message.get("more_body", False):
                    break
    except TimeoutError:
        pass
    return read


class _Answer:
    """Sends an answer on; one that Ray made instead of a replica (text, a status from 400 on) is replaced."""

    def __init__(self, send: Send) -> None:
        self._send, self._replaced = send, False
        self.began = False

    async def __call__(self, message: Message) -> None:
        """As ASGI's ``send``."""
        if message["type"] != "http.response.start":
            if not self._replaced:
                await self._send(message)
            return
        self.began = True
        headers = Headers(raw=message.get("headers", []))
        error = _rays_error(message["status"], headers)
        if error is None:
            message["headers"] = _once(message.get("headers", []))
            await self._send(message)
            return
        self._replaced = True
        await self.refuse(error, headers.get(_REQUEST_ID, ""))

    async def refuse(self, error: ApiError, number: str) -> None:
        """Answer with ``error`` the request ``number``, of which nothing was answered."""
        self.began = True
        body = envelope(error)
        own = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
        raw = [(name.encode(), value.encode()) for name, value in own.items()]
        raw.append((_REQUEST_ID.encode(), number.encode("latin-1", "replace")))
        await self._send({"type": "http.response.start", "status": error.status, "headers": raw})
        await self._send({"type": "http.response.body", "body": body})


def _rays_error(status: int, headers: Headers) -> ApiError | None:
    """What Ray means, in our words; None: a replica answers (its errors are JSON)."""
    if (status < 500 and status not in (404, 429)) or not headers.get("content-type", "").startswith("text/plain"):
        return None
    if status == 429:
        message = "as many requests run and wait as all replicas together take; try again"
        return ApiError(429, "queue_full", message, headers={"retry-after": str(RETRY_SECONDS)})
    if status in (404, 503):  # 404: the application is not there yet, or no more
        return unavailable("loading", "no replica takes requests now; try again soon")
    return _lost()


def _lost() -> ApiError:
    return unavailable("replica_lost", "the replica that had this request ended before it answered; try again")


def _once(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """With one request id, the last: Ray's comes before the replica's or is the only one."""
    ids = [one for one in headers if one[0].lower() == _REQUEST_ID.encode()]
    return [one for one in headers if one[0].lower() != _REQUEST_ID.encode()] + ids[:1]
