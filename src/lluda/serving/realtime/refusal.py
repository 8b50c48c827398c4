"""How a session ends that has not begun: the client is told why, then the connection is closed."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec
from starlette.websockets import WebSocketDisconnect

from lluda.serving.realtime.conversation.items import new_id
from lluda.serving.realtime.events.server_events import ErrorEvent, ErrorObject

if TYPE_CHECKING:
    from starlette.websockets import WebSocket

    from lluda.serving.http.errors import ApiError
    from lluda.serving.limits import Limits

UNSUPPORTED_DATA, POLICY_VIOLATION, INTERNAL_ERROR, TRY_AGAIN_LATER = 1003, 1008, 1011, 1013
"""Codes of RFC 6455 section 7.4.1 and of IANA's list."""

GONE = (WebSocketDisconnect, RuntimeError)
"""What starlette raises where the client has left."""


async def refuse(socket: WebSocket, error: ApiError, limits: Limits) -> None:
    """Tell ``error`` and close an accepted connection."""
    found = ErrorObject(type=error.type, message=error.message, code=error.code, param=error.param)
    event = ErrorEvent(event_id=new_id("event"), error=found)
    with suppress(TimeoutError, *GONE):
        async with asyncio.timeout(limits.write_stall_seconds):
            await socket.send_text(msgspec.json.encode(event).decode())
            await socket.close(close_code(error), error.code[:100])


def close_code(error: ApiError) -> int:
    """Of a connection that ends for ``error``."""
    if error.status == 503:
        return TRY_AGAIN_LATER
    return INTERNAL_ERROR if error.status >= 500 else POLICY_VIOLATION
