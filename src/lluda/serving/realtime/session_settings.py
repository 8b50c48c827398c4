"""What holds in a session, after all updates; and for one response of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lluda.serving.http.errors import ApiError, invalid
from lluda.serving.questions.tool_use import ToolUse, tool_use
from lluda.serving.realtime.events.session_fields import (
    Audio,
    G711Format,
    PcmFormat,
    ResponseFields,
    SemanticVad,
    ServerVad,
    SessionFields,
    Transcription,
)
from lluda.serving.wire.tools import Function, FunctionChoice, NamedTool, Tool, ToolChoice

if TYPE_CHECKING:
    from lluda.serving.limits import Limits
    from lluda.serving.service import Service

_OF_A_RESPONSE = ("conversation", "metadata", "input", "model")
"""Fields of a response that a session does not have."""


@dataclass(frozen=True, slots=True)
class SoundFormat:
    """``type`` as OpenAI names it; ``rate`` in samples a second."""

    type: str
    rate: int

    @classmethod
    def of(cls, field: PcmFormat | G711Format) -> SoundFormat:
        """The format that a field names."""
        return cls(field.type, field.rate if isinstance(field, PcmFormat) else 8000)

    @property
    def sample_bytes(self) -> int:
        """Of one sample."""
        return 2 if self.type == "audio/pcm" else 1

    def describe(self) -> dict[str, Any]:
        """As OpenAI writes it."""
        return {"type": self.type, "rate": self.rate} if self.type == "audio/pcm" else {"type": self.type}


@dataclass(frozen=True, slots=True)
class AnswerSettings:
    """How one answer is to be. ``speaker``: of the checkpoint (None: it is text); ``voice``: by the name that the
    client gave; ``max_tokens`` None: as many as there is room for; ``thinking`` None: as the template has it."""

    speaker: str | None
    voice: str | None
    format: SoundFormat
    instructions: str
    tools: ToolUse
    max_tokens: int | None
    temperature: float | None
    thinking: bool | None

    @property
    def modalities(self) -> list[str]:
        """As OpenAI writes them."""
        return ["text"] if self.speaker is None else ["audio"]

    def describe(self) -> dict[str, Any]:
        """The fields of a response that repeat what was asked."""
        return {
            "output_modalities": self.modalities,
            "max_output_tokens": "inf" if self.max_tokens is None else self.max_tokens,
            "audio": {"output": {"format": self.format.describe(), "voice": self.voice}},
        }


class SessionSettings:
    """The fields of a session, each with its value; never changed, only replaced."""

    def __init__(self, service: Service, fields: SessionFields | None = None) -> None:
        """ApiError 400: no such voice, or tools that contradict each other."""
        self._service = service
        self.fields = fields or SessionFields()
        self._answer = _answer(self.fields, service, "session")

    def updated(self, change: SessionFields) -> SessionSettings:
        """With what ``change`` sets. ApiError 400, after which nothing has changed."""
        merged = _merged(self.fields.model_dump(), change.model_dump(exclude_unset=True))
        return SessionSettings(self._service, SessionFields.model_validate(merged))

    def answer(self, change: ResponseFields | None = None) -> AnswerSettings:
        """Of the next response. ApiError 400 as `__init__`."""
        if change is None:
            return self._answer
        changes = change.model_dump(exclude_unset=True, exclude=set(_OF_A_RESPONSE))
        merged = SessionFields.model_validate(_merged(self.fields.model_dump(), changes))
        return _answer(merged, self._service, "response")

    @property
    def is_transcription(self) -> bool:
        """Whether turns are only written down."""
        return self.fields.type == "transcription"

    @property
    def turn_detection(self) -> ServerVad | SemanticVad | None:
        """None: the client says where turns end."""
        return self.fields.audio.input.turn_detection if self._service.model.can_hear else None

    @property
    def transcription(self) -> Transcription | None:
        """None: the user's turns are not written down."""
        given = self.fields.audio.input.transcription
        return Transcription() if given is None and self.is_transcription else given

    @property
    def input_format(self) -> SoundFormat:
        """Of the sound that is appended."""
        return SoundFormat.of(self.fields.audio.input.format)

    def describe(self) -> dict[str, Any]:
        """The effective session, but for what does not change."""
        fields, name = self.fields, self._service.names.first
        transcription, detection = self.transcription, self.turn_detection
        heard = {
            "format": self.input_format.describe(),
            "noise_reduction": fields.audio.input.noise_reduction,
            "transcription": None if transcription is None else {**transcription.model_dump(), "model": name},
            "turn_detection": None if detection is None else detection.model_dump(),
        }
        if self.is_transcription:
            return {"type": "transcription", "include": fields.include, "audio": {"input": heard}}
        answer = self._answer
        choice, truncation = fields.tool_choice, fields.truncation
        return {
            "type": "realtime",
            "model": name,
            "output_modalities": answer.modalities,
            "instructions": fields.instructions,
            "tools": [tool.model_dump(exclude_none=True) for tool in fields.tools],
            "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
            "parallel_tool_calls": fields.parallel_tool_calls,
            "max_output_tokens": fields.max_output_tokens,
            "truncation": truncation if isinstance(truncation, str) else truncation.model_dump(exclude_none=True),
            "tracing": fields.tracing,
            "include": fields.include,
            "prompt": None,
            "audio": {
                "input": heard,
                "output": {"format": answer.format.describe(), "voice": answer.voice, "speed": 1.0},
            },
        }


def _answer(fields: SessionFields, service: Service, where: str) -> AnswerSettings:
    speaks = "audio" in fields.output_modalities and bool(service.voices.names) and fields.type == "realtime"
    voice = _voice(fields.audio)
    speaker = service.voices.resolve(voice, f"{where}.audio.output.voice") if speaks else None
    most = fields.max_output_tokens
    effort = fields.reasoning.effort if fields.reasoning else None
    return AnswerSettings(
        speaker=speaker,
        voice=voice or speaker,
        format=SoundFormat.of(fields.audio.output.format),
        instructions=fields.instructions,
        tools=_tools(fields, service.limits, where),
        max_tokens=None if isinstance(most, str) else most,
        temperature=fields.temperature,
        thinking=None if effort is None else effort not in ("none", "minimal"),
    )


def _voice(audio: Audio) -> str | None:
    voice = audio.output.voice
    return voice if voice is None or isinstance(voice, str) else voice.id


def _tools(fields: SessionFields, limits: Limits, where: str) -> ToolUse:
    tools = [Tool(type="function", function=Function(**tool.model_dump(exclude={"type"}))) for tool in fields.tools]
    given = fields.tool_choice
    choice: ToolChoice | None = (
        given if isinstance(given, str) else NamedTool(type="function", function=FunctionChoice(name=given.name))
    )
    try:
        return tool_use(tools, choice, fields.parallel_tool_calls, limits)
    except ApiError as error:
        raise invalid(error.message, f"{where}.{error.param}", error.code) from None


def _merged(fields: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """``fields`` with those of ``change``, level by level. What has another ``type`` is replaced."""
    merged = dict(fields)
    for name, value in change.items():
        before = merged.get(name)
        if isinstance(value, Mapping) and isinstance(before, Mapping) and _is_of_one_type(before, value):
            merged[name] = _merged(before, value)
        else:
            merged[name] = value
    return merged


def _is_of_one_type(before: Mapping[str, Any], value: Mapping[str, Any]) -> bool:
    return "type" not in value or before.get("type") == value["type"]
