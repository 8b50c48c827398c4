"""From a conversation to the pieces of its answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lluda.engine.request import SpeechChunk, Token
from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.engine.speech.speech_params import MAX_FRAMES, SpeechParams
from lluda.serving.answers.usage import PromptCounts
from lluda.serving.http.errors import ApiError
from lluda.serving.questions.chat_question import ChatQuestion, Speech
from lluda.serving.questions.engine_requests import EngineRequests, compiled, engine_requests
from lluda.serving.reading.answer_reader import AnswerReader
from lluda.serving.reading.pieces import CallBroken, Finished, Piece
from lluda.serving.realtime.conversation.conversation import Reading
from lluda.serving.realtime.session_settings import AnswerSettings

if TYPE_CHECKING:
    from lluda.engine.sampling.constraint import Constraint
    from lluda.serving.service import Service
    from lluda.serving.ticket import Ticket

FIRST = -1
"""Priority of an answer to somebody who listens."""

_ROOM, _LEAST_SHARE = 1024, 4
"""Positions that an answer should have: so many, or this part of the context if that is less."""


@dataclass(slots=True)
class Cost:
    """What an answer cost so far; ``prompt`` of which ``cached`` rows were not computed (known at its end)."""

    prompt: int = 0
    cached: int = 0
    media: PromptCounts = field(default_factory=PromptCounts)
    text: int = 0
    frames: int = 0


Read = Callable[[bool], Reading | None]
"""The conversation as it stands; True: with less of its beginning than before, or None if there is no less."""


@asynccontextmanager
async def answering(
    service: Service, read: Read, settings: AnswerSettings, cost: Cost, salt: bytes
) -> AsyncIterator[AsyncIterator[Piece]]:
    """The pieces of one answer; what has not ended when the block is left is cancelled. ApiError and LludaError as
    `asking`."""
    model = service.model
    reading = read(False)
    assert reading is not None, "nothing is left out"
    question = _question(reading, settings)
    constraint = None
    if question.tools.functions or question.grammar.is_needed:
        constraint = await service.in_worker(compiled, model, question)
    async with service.admit("realtime", None, first=True, salt=salt) as ticket:
        found = await _fitting(service, read, settings, constraint)
        cost.prompt, cost.media = len(found.requests[0].prompt.ids), found.media
        yield _pieces(service, ticket, found, cost)


def chat_options(settings: AnswerSettings) -> dict[str, Any]:
    """Fields of ChatOptions with which an answer's prompt is written, as `engine_requests` chooses them."""
    thinking = False if settings.tools.must_call and settings.thinking is None else settings.thinking
    return {"enable_thinking": thinking, "tools": settings.tools.for_template}


def _question(reading: Reading, settings: AnswerSettings) -> ChatQuestion:
    speech = None
    if settings.speaker is not None:
        frames = None if settings.max_tokens is None else min(settings.max_tokens, MAX_FRAMES)
        speech = Speech(SpeechParams(max_frames=frames), settings.speaker, settings.format.type)
    return ChatQuestion(
        messages=reading.messages,
        paths=reading.paths,
        sampling=SamplingParams(
            max_tokens=settings.max_tokens, temperature=settings.temperature, clamp_max_tokens=True
        ),
        tools=settings.tools,
        thinking=settings.thinking,
        speech=speech,
    )


async def _fitting(
    service: Service, read: Read, settings: AnswerSettings, constraint: Constraint | None
) -> EngineRequests:
    """With as much of the conversation as leaves room for an answer."""
    model = service.model
    context = model.runner.cache_options.max_length
    room = min(_ROOM, context // _LEAST_SHARE)
    reading = read(False)
    while True:
        assert reading is not None, "checked below"
        question = _question(reading, settings)
        try:
            found = await service.in_worker(engine_requests, model, question, reading.messages, constraint, FIRST)
        except ApiError as error:
            shorter = read(True) if error.code == "context_length_exceeded" else None
            if shorter is None:
                raise
            reading = shorter
            continue
        reading.keep(found.encoded)
        shorter = read(True) if len(found.requests[0].prompt.ids) + room > context else None
        if shorter is None:
            return found
        reading = shorter


async def _pieces(service: Service, ticket: Ticket, found: EngineRequests, cost: Cost) -> AsyncIterator[Piece]:
    reader = AnswerReader(found.form)
    async for event in ticket.submit(*found.requests):
        match event:
            case Token():
                cost.text += 1
            case SpeechChunk():
                cost.frames += len(event.codes)
        for piece in reader.push(event):
            if isinstance(piece, CallBroken) and not piece.cut:
                service.metrics.tool_parse_failures.inc()
            if isinstance(piece, Finished):
                cost.prompt, cost.cached = piece.counts.prompt, piece.counts.cached
                cost.text, cost.frames = piece.counts.text, piece.counts.frames
                if piece.reason == "tool_calls":
                    ticket.outcome = "tool_calls"
            yield piece
