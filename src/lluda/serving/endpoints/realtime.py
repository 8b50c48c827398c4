"""/v1/realtime: a spoken conversation over a websocket; POST /v1/realtime/client_secrets: keys for one."""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from lluda.serving.http.body import read_body
from lluda.serving.http.connection import WEBSOCKET_PATHS
from lluda.serving.http.errors import ApiError, from_error
from lluda.serving.http.guard import check_origin, error_response
from lluda.serving.http.json_response import json_response
from lluda.serving.http.route import ApiRoute
from lluda.serving.realtime.client_secrets import SECONDS, ClientSecretBody, ExpiresAfter, described
from lluda.serving.realtime.conversation.items import new_id
from lluda.serving.realtime.events.session_fields import SessionFields
from lluda.serving.realtime.refusal import GONE, refuse
from lluda.serving.realtime.session import Session
from lluda.serving.realtime.session_settings import SessionSettings

if TYPE_CHECKING:
    from lluda.serving.service import Service

_log = logging.getLogger("lluda.serving.requests")

_PROTOCOL = "realtime"
_KEY_PROTOCOL = "openai-insecure-api-key."
"""How browsers, which cannot set headers, send a key."""

_BETA_PROTOCOL = "openai-beta.realtime-v1"
_BETA_HEADER = "realtime=v1"

_OPENAI = ("gpt-", "whisper-")
"""How OpenAI's names of models begin, which clients send by default: taken as the served model."""


@dataclass(frozen=True, slots=True)
class _Admitted:
    """``given``: what the client's secret says of the session; ``salt`` as `Keys.salt`."""

    given: SessionFields | None
    salt: bytes


async def realtime(socket: WebSocket) -> None:
    """One session, from the handshake to its end."""
    service: Service = socket.app.state.service
    try:
        check_origin(socket.headers, service.settings.allow_origins)
    except ApiError as error:
        await socket.send_denial_response(error_response(error))
        return
    offered: list[str] = socket.scope["subprotocols"]
    await socket.accept(_PROTOCOL if _PROTOCOL in offered else None)
    beta = _BETA_PROTOCOL in offered or socket.headers.get("openai-beta") == _BETA_HEADER
    try:
        service.check_open()
        admitted = _admitted(service, socket, offered)
        _check_model(service, socket.query_params.get("model"))
        given = admitted.given
        if given is None and socket.query_params.get("intent") == "transcription":
            given = SessionFields(type="transcription")
        session = Session(service, socket, given, beta=beta, salt=admitted.salt)
        with service.sessions.place(session):
            _log.info("%s began", session.id)
            began = time.monotonic()
            try:
                await session.run()
            finally:
                _log.info("%s ended after %.1f s", session.id, time.monotonic() - began)
    except GONE:
        return
    except Exception as error:
        await refuse(socket, from_error(error), service.limits)


async def client_secrets(request: Request) -> Response:
    """A key for a short time, with which a page opens sessions."""
    service: Service = request.app.state.service
    body = await read_body(request, ClientSecretBody)
    settings = SessionSettings(service)
    if body.session is not None:
        settings = settings.updated(body.session)
    expiry = body.expires_after or ExpiresAfter(seconds=SECONDS)
    value, secret = service.client_secrets.issue(body.session, expiry.seconds)
    own = {"id": new_id("sess"), "object": "realtime.session", "expires_at": secret.expires_at}
    return json_response(described(value, secret, {**settings.describe(), **own}))


def _admitted(service: Service, socket: WebSocket, offered: list[str]) -> _Admitted:
    """ApiError 401: no key that is good."""
    sent = [one.removeprefix(_KEY_PROTOCOL) for one in offered if one.startswith(_KEY_PROTOCOL)]
    scheme, _, bearer = socket.headers.get("authorization", "").partition(" ")
    for key in (*sent, bearer.strip() if scheme.lower() == "bearer" else ""):
        secret = service.client_secrets.find(key)
        if secret is not None:
            return _Admitted(secret.session, _digest(key))
    if len(sent) == 1 and service.keys.knows(sent[0]):
        return _Admitted(None, _digest(sent[0]))
    if service.keys.accepts(socket.headers):
        return _Admitted(None, service.keys.salt(socket.headers))
    words = f"one API key is needed, as 'authorization: Bearer KEY' or as subprotocol {_KEY_PROTOCOL}KEY"
    raise ApiError(401, "invalid_api_key", words)


def _check_model(service: Service, name: str | None) -> None:
    """ApiError 404: a model that is neither served nor OpenAI's."""
    if name and not name.startswith(_OPENAI):
        service.check_model(name)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


async def without_upgrade(_: Request) -> Response:
    """Plain HTTP where a websocket is."""
    headers = {"upgrade": "websocket", "connection": "upgrade"}
    raise ApiError(426, "upgrade_required", "this is a websocket: ask with upgrade: websocket", headers=headers)


ROUTES = (
    ApiRoute(
        "POST",
        "/v1/realtime/client_secrets",
        client_secrets,
        summary="A key for a realtime session, for a short time",
        body=ClientSecretBody,
    ),
    ApiRoute("GET", WEBSOCKET_PATHS[0], without_upgrade, summary="A spoken conversation over a websocket"),
)
SOCKETS = (WebSocketRoute(WEBSOCKET_PATHS[0], realtime),)
