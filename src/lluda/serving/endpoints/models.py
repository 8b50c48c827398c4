"""GET /v1/models and /v1/models/{id}: the one model that is here, under each of its names."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from lluda.serving.http.json_response import json_response
from lluda.serving.http.route import ApiRoute
from lluda.serving.service import Service


async def list_models(request: Request) -> Response:
    """All names."""
    service: Service = request.app.state.service
    return json_response({"object": "list", "data": [_model(service, name) for name in service.names.served]})


async def get_model(request: Request) -> Response:
    """One of them. ApiError 404 ``model_not_found``."""
    service: Service = request.app.state.service
    name = request.path_params["model"]
    service.check_model(name)
    return json_response(_model(service, name))


def _model(service: Service, name: str) -> dict[str, object]:
    model = service.model
    hears, speaks = model.media is not None, bool(service.voices.names)
    return {
        "id": name,
        "object": "model",
        "created": service.started,
        "owned_by": "lluda",
        "max_model_len": model.runner.cache_options.max_length,
        "modalities": {
            "input": ["text", "audio", "image", "video"] if hears else ["text"],
            "output": ["text", "audio"] if speaks else ["text"],
        },
        "voices": list(service.voices.names),
    }


ROUTES = (
    ApiRoute("GET", "/v1/models", list_models, summary="The model under all its names"),
    ApiRoute("GET", "/v1/models/{model:path}", get_model, summary="The model under one name"),
)
