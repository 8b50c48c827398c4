"""Asking a question: admission, media, prompt, engine; and the pieces of its answers as they come."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lluda.serving.answers.usage import PromptCounts
from lluda.serving.http.errors import ApiError
from lluda.serving.media.parts import with_media
from lluda.serving.questions.chat_question import ChatQuestion
from lluda.serving.questions.engine_requests import EngineRequests, compiled, engine_requests
from lluda.serving.reading.answer_reader import AnswerReader
from lluda.serving.reading.pieces import CallBroken, Finished, Piece

if TYPE_CHECKING:
    from starlette.requests import Request

    from lluda.serving.service import Service
    from lluda.serving.ticket import Ticket


@dataclass(frozen=True, slots=True)
class Answers:
    """``pieces`` of all choices as they come, each with its choice's number."""

    pieces: AsyncIterator[tuple[int, Piece]]
    media: PromptCounts


@asynccontextmanager
async def asking(service: Service, request: Request, endpoint: str, question: ChatQuestion) -> AsyncIterator[Answers]:
    """The answers to ``question``; what has not ended when the block is left is cancelled. ApiError, ClientDisconnected
    as `compiled`, `Service.admit`, `with_media`, `engine_requests`; LludaError as `Engine.submit`."""
    model = service.model
    constraint = None
    if question.tools.functions or question.grammar.is_needed:
        constraint = await service.in_worker(compiled, model, question)
    async with service.admit(endpoint, request, question.choices) as ticket:
        messages = await _with_media(service, question)
        found = await service.in_worker(engine_requests, model, question, messages, constraint)
        yield Answers(_pieces(service, ticket, found), found.media)


async def _with_media(service: Service, question: ChatQuestion) -> list[dict[str, Any]]:
    try:
        return await with_media(question.messages, service.limits, service.fetcher, service.in_worker)
    except ApiError as error:
        for index, path in enumerate(question.paths):
            written = f"messages[{index}]."
            if path != written[:-1] and error.param is not None and error.param.startswith(written):
                param = f"{path}.{error.param.removeprefix(written)}"
                message = error.message.replace(error.param, param)
                raise ApiError(error.status, error.code, message, param=param, headers=error.headers) from None
        raise


async def _pieces(service: Service, ticket: Ticket, found: EngineRequests) -> AsyncIterator[tuple[int, Piece]]:
    readers = [AnswerReader(found.form) for _ in found.requests]
    async for event in ticket.submit(*found.requests):
        for piece in readers[event.index].push(event):
            if isinstance(piece, CallBroken) and not piece.cut:
                service.metrics.tool_parse_failures.inc()
            if isinstance(piece, Finished) and piece.reason == "tool_calls":
                ticket.outcome = "tool_calls"
            yield event.index, piece
