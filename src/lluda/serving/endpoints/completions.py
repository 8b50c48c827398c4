"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response

from lluda.engine.request import PromptLogprobs, SpeechEvent
from lluda.serving.answers.completion_answer import completion, completion_usage
from lluda.serving.answers.head import AnswerHead
from lluda.serving.http.body import read_body
from lluda.serving.http.json_response import json_response
from lluda.serving.http.route import ApiRoute
from lluda.serving.http.sse import DONE, EventStream, data
from lluda.serving.questions.completion_question import CompletionQuestion, asked_completions, completion_question
from lluda.serving.service import Service
from lluda.serving.wire.completions import CompletionBody

_T = TypeVar("_T")


async def completions(request: Request) -> Response:
    """Continuations of texts, as they stand: no chat template."""
    service: Service = request.app.state.service
    body = await read_body(request, CompletionBody)
    service.check_model(body.model)
    question = await service.in_worker(completion_question, body, service.limits)
    head = AnswerHead("cmpl-", service.names.first, service.fingerprint)
    if not body.stream:
        return await _whole(service, request, question, head)
    with_usage = bool(body.stream_options and body.stream_options.include_usage)
    events = _streamed(service, request, question, head, with_usage)
    return EventStream(events, ping_seconds=service.limits.ping_seconds)


async def _whole(service: Service, request: Request, question: CompletionQuestion, head: AnswerHead) -> Response:
    async with service.admit("completions", request, question.sequences) as ticket:
        found = await service.in_worker(asked_completions, service.model, question)
        choices = [choice for one in found.choices for choice in one]
        for choice in choices:
            list(choice.begin())
        async for event in ticket.submit(*found.requests):
            await _taken(service, event, lambda event: list(choices[event.index].add(event)))
    return await service.in_worker(lambda: json_response(completion(head, found.choices)))


async def _streamed(
    service: Service, request: Request, question: CompletionQuestion, head: AnswerHead, with_usage: bool
) -> AsyncGenerator[bytes]:
    first = head.object("text_completion")
    rest = {"usage": None} if with_usage else {}
    async with service.admit("completions", request, question.sequences) as ticket:
        found = await service.in_worker(asked_completions, service.model, question)
        choices = [choice for one in found.choices for choice in one]

        def messages(event: SpeechEvent) -> list[bytes]:
            return [data(first | {"choices": [part]} | rest) for part in choices[event.index].add(event)]

        events = ticket.submit(*found.requests)
        for choice in choices:
            for part in choice.begin():
                yield data(first | {"choices": [part]} | rest)
        async for event in events:
            for message in await _taken(service, event, messages):
                yield message
    if with_usage:
        yield data(first | {"choices": [], "usage": completion_usage(found.choices)})
    yield DONE


async def _taken(service: Service, event: SpeechEvent, work: Callable[[SpeechEvent], _T]) -> _T:
    """``work`` of ``event``; that of the scores of a whole prompt is done beside the event loop."""
    return await service.in_worker(work, event) if isinstance(event, PromptLogprobs) else work(event)


ROUTES = (
    ApiRoute(
        "POST",
        "/v1/completions",
        completions,
        summary="Continuations of texts",
        body=CompletionBody,
        answers=("application/json", "text/event-stream"),
    ),
)
