"""What every request passes: its id, its key, its origin; and what becomes of errors."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import secrets
import time
from collections.abc import Collection
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lluda.serving.http.body_stream import StreamBroken
from lluda.serving.http.connection import ABORT
from lluda.serving.http.errors import ApiError, ClientDisconnected, envelope, from_error
from lluda.serving.http.route import ApiRoute

if TYPE_CHECKING:
    from lluda.serving.service import Service

_log = logging.getLogger("lluda.serving.requests")

OPEN_PATHS = ("/health", "/")
"""What may be asked without a key: the page has nothing to hide, and asks for one itself."""

_MAX_ID = 128
_MAX_LOGGED_PATH = 200


class Guard:
    """ASGI middleware around all routes: every answer has ``x-request-id``, every error the envelope, every request one
    line in the log."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        number = _request_id(headers.get("x-request-id"))
        scope.setdefault("state", {})["request_id"] = number
        started, status = time.monotonic(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", number.encode())]
            await send(message)

        try:
            self._check(scope, headers)
            scope["state"]["salt"] = self._service.keys.salt(headers)
            await self.app(scope, receive, answer)
        except (ClientDisconnected, ClientDisconnect):
            status = 499
            await _abort(scope)
        except Exception as error:
            if status:
                await self._break_off(scope, error)
            else:
                await error_response(from_error(error))(scope, receive, answer)
        finally:
            self._service.let_go(scope)
            self._note(scope, status, number, time.monotonic() - started)

    def _check(self, scope: Scope, headers: Headers) -> None:
        """ApiError: a page of a foreign origin, or no key."""
        check_origin(headers, self._service.settings.allow_origins)
        is_preflight = scope["method"] == "OPTIONS" and "access-control-request-method" in headers  # has no key
        if scope["path"] not in OPEN_PATHS and not is_preflight and not self._service.keys.accepts(headers):
            raise ApiError(
                401,
                "invalid_api_key",
                "one API key is needed, as 'authorization: Bearer KEY'; this request has none, several or a wrong one",
                headers={"www-authenticate": "Bearer"},
            )

    async def _break_off(self, scope: Scope, error: Exception) -> None:
        """The answer had begun: what is missing of it cannot be told, but that it is missing can."""
        if not isinstance(error, StreamBroken):
            from_error(error)  # logs what nobody expected
        elif error.__cause__ is not None:
            from_error(error.__cause__)
        await _abort(scope)

    def _note(self, scope: Scope, status: int, number: str, seconds: float) -> None:
        route = scope.get("route")
        path = route.path if isinstance(route, ApiRoute) else "other"
        self._service.metrics.http_responses.labels(path, str(status)).inc()
        asked = scope.get("raw_path", b"").decode("ascii", "replace")[:_MAX_LOGGED_PATH]
        _log.info("%s %s %s %d %.0f ms", number, scope["method"], asked, status, 1000 * seconds)


def check_origin(headers: Headers, allowed: Collection[str]) -> None:
    """ApiError 403: a page of a foreign origin asks."""
    origin = headers.get("origin")
    if origin is not None and origin not in allowed and not _is_of_this_server(origin, headers.get("host", "")):
        message = f"web pages of {origin[:80]!r} may not ask this server; start it with --allow-origin to let them"
        raise ApiError(403, "origin_not_allowed", message)


def _is_of_this_server(origin: str, host: str) -> bool:
    """Whether a page of ``origin`` is of this server, asked by a name of this machine (any other name may be
    somebody's who lets it point here)."""
    try:
        parts = urlsplit(origin)
        name = parts.hostname or ""
    except ValueError:
        return False
    return parts.netloc == host and _is_loopback(name)


def error_response(error: ApiError) -> Response:
    """The error as an answer."""
    return Response(envelope(error), error.status, error.headers, "application/json")


async def _abort(scope: Scope) -> None:
    """Close the connection at once."""
    abort = scope.get("extensions", {}).get(ABORT)
    if abort is not None:
        abort()
        await asyncio.sleep(0)  # by when uvicorn knows that it is lost


def _request_id(given: str | None) -> str:
    """The client's own, if it can stand in a header and in a line of the log, else a new one."""
    if given and len(given) <= _MAX_ID and given.isascii() and given.isprintable():
        return given
    return f"req_{secrets.token_hex(12)}"


def _is_loopback(name: str) -> bool:
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
