"""GET /v1/audio/voices: by which names the model speaks."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from lluda.serving.http.json_response import json_response
from lluda.serving.http.route import ApiRoute
from lluda.serving.service import Service


async def voices(request: Request) -> Response:
    """The checkpoint's speakers, and for which of them OpenAI's names stand."""
    service: Service = request.app.state.service
    service.check_open()
    return json_response({"voices": list(service.voices.names), "aliases": service.voices.openai})


ROUTES = (ApiRoute("GET", "/v1/audio/voices", voices, summary="Voices of the model"),)
