"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from lluda.outputs.encoded_audio import encoded_audio
from lluda.serving.answers.chat_answer import ChatChoice, ChatView, audio_object, chat_completion
from lluda.serving.answers.chat_chunks import ChatChunks, usage_chunk
from lluda.serving.answers.head import AnswerHead
from lluda.serving.answers.usage import usage
from lluda.serving.http.body import read_body
from lluda.serving.http.json_response import json_response
from lluda.serving.http.route import ApiRoute
from lluda.serving.http.sse import DONE, EventStream, data
from lluda.serving.questions.asking import asking
from lluda.serving.questions.chat_question import ChatQuestion, chat_question
from lluda.serving.reading.pieces import AnswerCounts, Finished
from lluda.serving.service import Service
from lluda.serving.ticket import SAMPLE_RATE
from lluda.serving.wire.chat import ChatBody


async def chat_completions(request: Request) -> Response:
    """An answer to a conversation: text, calls of tools, speech."""
    service: Service = request.app.state.service
    body = await read_body(request, ChatBody)
    service.check_model(body.model)
    question = await service.in_worker(chat_question, body, service.limits, service.voices, service.spoken_answers)
    head = AnswerHead("chatcmpl-", service.names.first, service.fingerprint, service.settings.replica)
    if not body.stream:
        return await _whole(service, request, question, head)
    with_usage = bool(body.stream_options and body.stream_options.include_usage)
    events = _streamed(service, request, question, head, with_usage)
    return EventStream(events, ping_seconds=service.limits.ping_seconds)


def _view(service: Service, question: ChatQuestion) -> ChatView:
    return ChatView(
        vocabulary=service.model.tokenizer,
        text=question.shown,
        spoken=question.speech is not None,
        logprobs=question.logprobs,
    )


async def _whole(service: Service, request: Request, question: ChatQuestion, head: AnswerHead) -> Response:
    view = _view(service, question)
    choices = [ChatChoice(index, view) for index in range(question.choices)]
    async with asking(service, request, "chat", question) as answers:
        async for index, piece in answers.pieces:
            choices[index].add(piece)
    if question.speech is None:
        return await service.in_worker(lambda: json_response(chat_completion(head, choices, answers.media)))
    service.spoken_answers.keep(head.audio_id, choices[0].transcript)
    made = await service.in_worker(_with_sound, head, choices[0], question.speech.format)
    return await service.in_worker(lambda: json_response(chat_completion(head, choices, answers.media, made)))


def _with_sound(head: AnswerHead, choice: ChatChoice, sound_format: str) -> dict[str, Any]:
    import numpy as np

    samples = np.concatenate([np.zeros(0, np.float32), *choice.sounds])
    return audio_object(head, encoded_audio(sound_format, SAMPLE_RATE, samples), choice.transcript)


async def _streamed(
    service: Service, request: Request, question: ChatQuestion, head: AnswerHead, with_usage: bool
) -> AsyncGenerator[bytes]:
    view = _view(service, question)
    choices = [ChatChunks(head, index, view, usage=with_usage) for index in range(question.choices)]
    counts: dict[int, AnswerCounts] = {}
    begun: set[int] = set()
    async with asking(service, request, "chat", question) as answers:
        async for index, piece in answers.pieces:
            if index not in begun:
                begun.add(index)
                yield data(choices[index].first())
            for chunk in choices[index].of(piece):
                yield data(chunk)
            if isinstance(piece, Finished):
                counts[index] = piece.counts
    if question.speech is not None:
        service.spoken_answers.keep(head.audio_id, choices[0].transcript)
    if with_usage:
        yield data(usage_chunk(head, usage([[counts[index] for index in sorted(counts)]], answers.media)))
    yield DONE


ROUTES = (
    ApiRoute(
        "POST",
        "/v1/chat/completions",
        chat_completions,
        summary="An answer to a conversation",
        body=ChatBody,
        answers=("application/json", "text/event-stream"),
    ),
)
