"""Whether the server lives, whether it can answer, what it is, and how it does."""

from __future__ import annotations

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from lluda import __version__
from lluda.serving.http.errors import ApiError
from lluda.serving.http.json_response import json_response
from lluda.serving.http.route import ApiRoute
from lluda.serving.service import Service, State


async def health(request: Request) -> Response:
    """200 while the process lives and its engine has not failed; ``?verbose=true`` shows limits and counters. Never
    waits for the engine."""
    service: Service = request.app.state.service
    failed = service.has_failed
    answer: dict[str, object] = {"status": "failed" if failed else "ok"}
    if request.query_params.get("verbose") == "true":
        admission = service.admission
        answer |= {
            "state": service.state.value,
            "running": admission.running,
            "waiting": admission.waiting,
            "limits": service.limits.numbers(),
        }
    return json_response(answer, 503 if failed else 200)


async def ready(request: Request) -> Response:
    """200 if a request would be answered: a one-token step of the last 10 s worked; else 503 with the reason."""
    service: Service = request.app.state.service
    if service.state is State.READY and await service.readiness.check():
        return json_response({"status": "ready"})
    status = "failed" if service.state is State.READY else service.state.value
    raise ApiError(503, status, f"the server is not ready: {status}", headers={"retry-after": "2"})


async def version(request: Request) -> Response:
    """What answers here."""
    service: Service = request.app.state.service
    return json_response(
        {
            "version": __version__,
            "commit": service.commit,
            "model": service.names.first,
            "backend": service.model.network.backend.name,
            "describe": service.model.describe(),
        }
    )


async def metrics(request: Request) -> Response:
    """For Prometheus."""
    service: Service = request.app.state.service
    return Response(await service.exposition(), media_type=CONTENT_TYPE_LATEST)


async def openapi(request: Request) -> Response:
    """What the API takes."""
    return Response(msgspec.json.encode(request.app.state.openapi), media_type="application/json")


ROUTES = (
    ApiRoute("GET", "/health", health, summary="Whether the process lives"),
    ApiRoute("GET", "/ready", ready, summary="Whether requests are answered now"),
    ApiRoute("GET", "/version", version, summary="Version, model and backend"),
    ApiRoute("GET", "/metrics", metrics, summary="Counters for Prometheus", answers=("text/plain",)),
    ApiRoute("GET", "/openapi.json", openapi, summary="This document"),
)
