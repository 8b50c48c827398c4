"""POST /v1/responses, as far as it needs nothing that is kept between requests."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from lluda.serving.answers.head import AnswerHead
from lluda.serving.answers.response_answer import ResponseAnswer
from lluda.serving.answers.response_items import Event
from lluda.serving.http.body import read_body
from lluda.serving.http.json_response import json_response
from lluda.serving.http.route import ApiRoute
from lluda.serving.http.sse import EventStream, event
from lluda.serving.questions.asking import asking
from lluda.serving.questions.chat_question import ChatQuestion
from lluda.serving.questions.response_question import response_question
from lluda.serving.service import Service
from lluda.serving.wire.responses import ResponseBody


async def responses(request: Request) -> Response:
    """An answer to a list of items."""
    service: Service = request.app.state.service
    body = await read_body(request, ResponseBody)
    service.check_model(body.model)
    question = await service.in_worker(response_question, body, service.limits)
    head = AnswerHead("resp_", service.names.first, service.fingerprint)
    answer = ResponseAnswer(head, _echo(body, question), service.model.tokenizer, question.logprobs)
    if not body.stream:
        async with asking(service, request, "responses", question) as answers:
            async for _, piece in answers.pieces:
                list(answer.of(piece))
        return await service.in_worker(lambda: json_response(answer.as_object()))
    return EventStream(
        _streamed(service, request, question, answer),
        ping_seconds=service.limits.ping_seconds,
        error_message=lambda error: _message(answer.failed(error)),
    )


async def _streamed(
    service: Service, request: Request, question: ChatQuestion, answer: ResponseAnswer
) -> AsyncGenerator[bytes]:
    begun = False
    async with asking(service, request, "responses", question) as answers:
        async for _, piece in answers.pieces:
            if not begun:
                begun = True
                yield _messages(answer.begin())
            if told := _messages(answer.of(piece)):
                yield told


def _messages(events: Iterable[Event]) -> bytes:
    return b"".join(_message(one) for one in events)


def _message(one: Event) -> bytes:
    return event(one["type"], one)


def _echo(body: ResponseBody, question: ChatQuestion) -> dict[str, Any]:
    """What a response repeats of its request. Nothing is stored, whatever was asked."""
    text_format = body.text.format if body.text else None
    choice = body.tool_choice
    return {
        "background": False,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": {},
        "parallel_tool_calls": question.tools.parallel if body.tools else body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
        "store": False,
        "temperature": body.temperature,
        "text": {"format": text_format.model_dump(by_alias=True) if text_format else {"type": "text"}},
        "tool_choice": "auto" if choice is None else choice if isinstance(choice, str) else choice.model_dump(),
        "tools": [tool.model_dump() for tool in body.tools or ()],
        "top_logprobs": question.logprobs or 0,
        "top_p": body.top_p,
        "truncation": "disabled",
    }


ROUTES = (
    ApiRoute(
        "POST",
        "/v1/responses",
        responses,
        summary="An answer to a list of items",
        body=ResponseBody,
        answers=("application/json", "text/event-stream"),
    ),
)
