"""OpenAI's own types as judges of what the server sends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from openai.types import Completion
from openai.types.audio import Transcription, TranscriptionStreamEvent, TranscriptionVerbose
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

EXTENSIONS = {
    "ChatCompletionMessage": {"reasoning_content"},
    "ChoiceDelta": {"reasoning_content"},
    "RealtimeSessionCreateRequest": {"id", "object", "expires_at"},
    "RealtimeTranscriptionSessionCreateRequest": {"id", "object", "expires_at"},
    "Response": {"store"},
    "ResponseFunctionCallArgumentsDoneEvent": {"name"},
    "TranscriptionVerbose": {"task"},
}
"""Fields that this server sends beyond OpenAI's."""

_event = TypeAdapter[Any](ResponseStreamEvent)
_transcription_event = TypeAdapter[Any](TranscriptionStreamEvent)


def chat_completion(value: Any) -> ChatCompletion:
    """``value``, strictly: no type is converted, no field unknown."""
    return known(ChatCompletion.model_validate_json(json.dumps(value), strict=True))


def chat_chunk(value: Any) -> ChatCompletionChunk:
    return known(ChatCompletionChunk.model_validate_json(json.dumps(value), strict=True))


def response(value: Any) -> Response:
    return known(Response.model_validate_json(json.dumps(value), strict=True))


def response_event(value: Any) -> Any:
    return known(_event.validate_json(json.dumps(value), strict=True))


def transcription(value: Any) -> Transcription:
    return known(Transcription.model_validate_json(json.dumps(value), strict=True))


def verbose_transcription(value: Any) -> TranscriptionVerbose:
    return known(TranscriptionVerbose.model_validate_json(json.dumps(value), strict=True))


def transcription_event(value: Any) -> Any:
    return known(_transcription_event.validate_json(json.dumps(value), strict=True))


def completion(value: Any, *, chunk: bool = False) -> Completion:
    """A completion. OpenAI's type has no room for two things that OpenAI and everybody else sends: that the first token
    of a prompt has no log-probability (null), and that a part of a stream has no finish_reason yet."""
    value = json.loads(json.dumps(value))
    for choice in value["choices"]:
        if chunk and choice["finish_reason"] is None:
            choice["finish_reason"] = "stop"
        logprobs = choice["logprobs"]
        if logprobs is not None and logprobs["token_logprobs"][:1] == [None]:
            assert logprobs["top_logprobs"][0] is None
            logprobs["token_logprobs"][0], logprobs["top_logprobs"][0] = 0.0, {}
    return known(Completion.model_validate_json(json.dumps(value), strict=True))


def known(model: Any) -> Any:
    """``model``, of whose fields OpenAI knows all."""
    for one in _models(model):
        unknown = set(one.model_extra or ()) - EXTENSIONS.get(type(one).__name__, set())
        assert not unknown, f"{type(one).__name__} has no {unknown}"
    return model


def _models(value: Any) -> Iterator[BaseModel]:
    if isinstance(value, BaseModel):
        yield value
        for name in value.model_fields_set:
            yield from _models(getattr(value, name))
    elif isinstance(value, list):
        for one in value:
            yield from _models(one)
    elif isinstance(value, dict):
        yield from _models(list(value.values()))
