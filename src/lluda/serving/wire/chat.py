"""The body of POST /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from lluda.serving.wire.chat_messages import Message
from lluda.serving.wire.sampling import Sampling, StreamOptions
from lluda.serving.wire.tools import ResponseFormat, Tool, ToolChoice
from lluda.serving.wire.wire_model import WireModel

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class VoiceId(WireModel):
    """A voice by its id."""

    id: str


def _name_or_object(value: object) -> str | None:
    return "#name" if isinstance(value, str) else "#object" if isinstance(value, dict) else None


Voice = Annotated[
    Annotated[str, Tag("#name")] | Annotated[VoiceId, Tag("#object")],
    Discriminator(
        _name_or_object,
        custom_error_type="invalid_value",
        custom_error_message='must be the name of a voice or {"id": name}',
    ),
]


class SpokenOutput(WireModel):
    """How an answer is spoken."""

    voice: Voice
    format: Literal["wav", "mp3", "flac", "opus", "aac", "pcm16"]


class TemplateArguments(WireModel):
    """The variables of a chat template that a client may set."""

    enable_thinking: bool | None = None


class ChatBody(Sampling):
    """``max_completion_tokens`` and ``max_tokens`` mean the same. ``speech_seed``, ``speech_temperature`` and
    ``max_audio_seconds`` are of the talker."""

    model: str
    messages: list[Message] = Field(min_length=1)
    modalities: list[Literal["text", "audio"]] | None = Field(default=None, min_length=1)
    audio: SpokenOutput | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0)
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Effort | None = None
    chat_template_kwargs: TemplateArguments | None = None
    speech_seed: int | None = Field(default=None, ge=0, le=2**64 - 1)
    speech_temperature: float | None = Field(default=None, ge=0, le=2)
    max_audio_seconds: float | None = Field(default=None, gt=0)
    functions: Any = None
    function_call: Any = None
