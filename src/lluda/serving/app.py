"""The application: all routes, behind the guard."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from lluda.serving.endpoints import (
    chat,
    completions,
    health,
    models,
    page,
    realtime,
    responses,
    speech,
    tokens,
    transcriptions,
    voices,
)
from lluda.serving.http.errors import ApiError
from lluda.serving.http.guard import Guard, error_response
from lluda.serving.http.openapi import openapi_document

if TYPE_CHECKING:
    from lluda.serving.http.route import ApiRoute
    from lluda.serving.service import Service

ENDPOINTS = (chat, completions, responses, speech, transcriptions, voices, health, models, tokens, page, realtime)
"""Modules with ``ROUTES``."""


def routes() -> tuple[ApiRoute, ...]:
    """All of them."""
    return tuple(route for module in ENDPOINTS for route in module.ROUTES)


def build_app(service: Service) -> Starlette:
    """The ASGI application of a service."""
    app = Starlette(
        routes=(*routes(), *realtime.SOCKETS),
        middleware=[Middleware(Guard, service=service), *_cors(service)],
        exception_handlers={HTTPException: _http_error},
    )
    app.router.redirect_slashes = False
    app.state.service = service
    app.state.openapi = openapi_document(routes())
    return app


def _cors(service: Service) -> list[Middleware]:
    """What browsers want to see before a page of another origin may ask; nothing where no origin is allowed."""
    origins = service.settings.allow_origins
    if not origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=("GET", "POST"),
            allow_headers=("authorization", "content-type", "api-key", "x-api-key", "x-request-id"),
            expose_headers=("x-request-id", "retry-after"),
        )
    ]


async def _http_error(request: Request, error: Exception) -> Response:
    """What the router answers to a path or method that there is not."""
    assert isinstance(error, HTTPException), "handles this one only"
    path = request.url.path[:80]
    match error.status_code:
        case 404:
            mended = ApiError(404, "not_found", f"there is nothing at {path!r}; /openapi.json lists what there is")
        case 405:
            allowed = (error.headers or {}).get("Allow", "")
            mended = ApiError(
                405,
                "method_not_allowed",
                f"{path!r} takes {allowed or 'another method'}, not {request.method[:20]}",
                headers=error.headers,
            )
        case _:
            mended = ApiError(error.status_code, "invalid_value", error.detail, headers=error.headers)
    return error_response(mended)
