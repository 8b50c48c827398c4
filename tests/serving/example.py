"""Endpoints that only tests have: the least that streams and the least that answers once, from the engine."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager

from starlette.requests import Request
from starlette.responses import Response

from lluda.engine.prompt_rows import PromptRows
from lluda.engine.request import Completion, Token
from lluda.engine.request import Request as EngineRequest
from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.serving import app
from lluda.serving.http.body import read_body
from lluda.serving.http.json_response import json_response
from lluda.serving.http.route import ApiRoute
from lluda.serving.http.sse import DONE, EventStream, data
from lluda.serving.service import Service
from lluda.serving.wire.wire_model import WireModel


class ExampleBody(WireModel):
    prompt: list[int]
    max_tokens: int = 8
    temperature: float = 0.0
    stream: bool = False
    filling: int = 0
    """Bytes that each message of a stream has besides."""


def engine_request(service: Service, body: ExampleBody) -> EngineRequest:
    sampling = SamplingParams(max_tokens=body.max_tokens, temperature=body.temperature, ignore_eos=True)
    chosen = sampling.with_defaults(service.model.files.generation_config)
    return EngineRequest(prompt=PromptRows(body.prompt), sampling=chosen, end_ids=frozenset())


async def example(request: Request) -> Response:
    """``{"prompt": ids, "max_tokens": n, "stream": bool}`` -> ids."""
    service: Service = request.app.state.service
    body = await read_body(request, ExampleBody)

    async def events() -> AsyncGenerator[bytes]:
        async with service.admit("completions", request) as ticket:
            async for event in ticket.submit(engine_request(service, body)):
                if isinstance(event, Token):
                    yield data({"id": event.id} | ({"filling": "x" * body.filling} if body.filling else {}))
        yield DONE

    if body.stream:
        return EventStream(events(), ping_seconds=service.limits.ping_seconds)
    async with service.admit("completions", request) as ticket:
        stream = ticket.submit(engine_request(service, body))
        completions = [event async for event in stream if isinstance(event, Completion)]
    return json_response({"ids": list(completions[0].token_ids)})


@contextmanager
def example_endpoints() -> Iterator[None]:
    """Servers that are started inside have them."""
    own = app.ENDPOINTS
    app.ENDPOINTS = (*own, sys.modules[__name__])
    try:
        yield
    finally:
        app.ENDPOINTS = own


ROUTES = (ApiRoute("POST", "/example", example, summary="Ids that follow", body=ExampleBody),)
