"""A route with what the OpenAPI document says of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from lluda.serving.wire.wire_model import WireModel

Handler = Callable[[Request], Awaitable[Response]]


class ApiRoute(Route):
    """One method of one path. ``body``: what it takes as JSON (``form``: as multipart); ``answers``: content types of
    what it answers with."""

    def __init__(
        self,
        method: str,
        path: str,
        handler: Handler,
        *,
        summary: str,
        body: type[WireModel] | None = None,
        form: type[WireModel] | None = None,
        answers: tuple[str, ...] = ("application/json",),
    ) -> None:
        super().__init__(path, handler, methods=[method])
        self.method, self.summary, self.body, self.form, self.answers = method, summary, body, form, answers
