"""What a client may say of a session, and of one response: the fields of ``session.update`` and ``response.create``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag, model_validator

from lluda.serving.wire.chat import Effort
from lluda.serving.wire.responses import FlatToolChoice, FunctionTool
from lluda.serving.wire.tools import by_type
from lluda.serving.wire.wire_model import WireModel


class Settings(WireModel):
    """Fields of which null means the default, but where null is a value of its own."""

    @model_validator(mode="before")
    @classmethod
    def _null_is_default(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: cls._default(name) if one is None else one for name, one in value.items()}

    @classmethod
    def _default(cls, name: str) -> Any:
        field = cls.model_fields.get(name)
        if field is None or name in _NULL_IS_A_VALUE:
            return None
        return field.default.model_dump() if isinstance(field.default, BaseModel) else field.default


_NULL_IS_A_VALUE = ("turn_detection",)


class PcmFormat(Settings):
    """Samples of 16 bits, little-endian, mono. OpenAI has 24,000 a second alone."""

    type: Literal["audio/pcm"] = "audio/pcm"
    rate: Literal[8000, 16000, 24000] = 24000


class G711Format(WireModel):
    """One byte a sample, 8,000 a second: mu-law or A-law."""

    type: Literal["audio/pcmu", "audio/pcma"]
    rate: Literal[8000] | None = Field(default=None, exclude=True)


Format = Annotated[
    Annotated[PcmFormat, Tag("#audio/pcm")]
    | Annotated[G711Format, Tag("#audio/pcmu")]
    | Annotated[G711Format, Tag("#audio/pcma")],
    Discriminator(
        by_type,
        custom_error_type="unsupported_value",
        custom_error_message="must have a type of audio/pcm, audio/pcmu or audio/pcma",
    ),
]


class ServerVad(Settings):
    """A turn ends with ``silence_duration_ms`` of silence."""

    type: Literal["server_vad"] = "server_vad"
    threshold: float = Field(default=0.5, ge=0, le=1)
    prefix_padding_ms: int = Field(default=300, ge=0, le=2000)
    silence_duration_ms: int = Field(default=500, ge=100, le=5000)
    create_response: bool = True
    interrupt_response: bool = True
    idle_timeout_ms: int | None = Field(default=None, ge=5000, le=30000)


class SemanticVad(Settings):
    """A turn ends where what was said is complete."""

    type: Literal["semantic_vad"]
    eagerness: Literal["low", "medium", "high", "auto"] = "auto"
    create_response: bool = True
    interrupt_response: bool = True


TurnDetection = Annotated[
    Annotated[ServerVad, Tag("#server_vad")] | Annotated[SemanticVad, Tag("#semantic_vad")],
    Discriminator(
        by_type,
        custom_error_type="unsupported_value",
        custom_error_message="must have a type of server_vad or semantic_vad, or be null",
    ),
]


class Transcription(Settings):
    """The user's turns are written down too. The model that does it is the session's own, whatever ``model`` says;
    ``delay``, ``keywords`` and ``languages`` have no meaning here."""

    model: str | None = None
    language: str | None = None
    prompt: str | None = Field(default=None, max_length=4096)
    delay: Any = Field(default=None, exclude=True)
    keywords: Any = Field(default=None, exclude=True)
    languages: Any = Field(default=None, exclude=True)


class AudioInput(Settings):
    """The user's side. ``noise_reduction`` has no meaning here."""

    format: Format = PcmFormat()
    noise_reduction: Any = None
    transcription: Transcription | None = None
    turn_detection: TurnDetection | None = ServerVad()


class VoiceId(WireModel):
    """A voice by its id."""

    id: str


class AudioOutput(Settings):
    """The answers' sound. ``speed`` is always 1."""

    format: Format = PcmFormat()
    voice: str | VoiceId | None = None
    speed: float = Field(default=1.0, ge=0.25, le=4)


class Audio(Settings):
    """Both sides."""

    input: AudioInput = AudioInput()
    output: AudioOutput = AudioOutput()


class Reasoning(Settings):
    """How much is thought before an answer, where the model's template has the switch."""

    effort: Effort | None = None
    summary: Any = None


Modality = Literal["text", "audio"]
MaxTokens = Annotated[int, Field(ge=1)] | Literal["inf"]


class _AnswerFields(Settings):
    """What holds for the answers of a session, or for one."""

    output_modalities: list[Modality] = Field(default=["audio"], min_length=1)
    instructions: str = ""
    tools: list[FunctionTool] = Field(default=[])
    tool_choice: FlatToolChoice = "auto"
    parallel_tool_calls: bool = True
    max_output_tokens: MaxTokens = "inf"
    temperature: float | None = Field(default=None, ge=0, le=2)
    """An extension; older clients send it."""
    reasoning: Reasoning | None = None
    prompt: None = None


class RetentionRatio(Settings):
    """As ``auto``: how much is kept of a conversation that is too long is the server's own."""

    type: Literal["retention_ratio"]
    retention_ratio: float = Field(ge=0, le=1)
    token_limits: Any = None


class SessionFields(_AnswerFields):
    """A session. What stands last has no meaning here."""

    type: Literal["realtime", "transcription"] = "realtime"
    audio: Audio = Audio()
    truncation: Literal["auto", "disabled"] | RetentionRatio = "auto"
    include: Any = None
    tracing: Any = None
    model: str | None = None
    id: Any = Field(default=None, exclude=True)
    object: Any = Field(default=None, exclude=True)
    expires_at: Any = Field(default=None, exclude=True)
    client_secret: Any = Field(default=None, exclude=True)


class ResponseAudio(Settings):
    """The sound of one response."""

    output: AudioOutput = AudioOutput()


class ResponseFields(_AnswerFields):
    """One response: what it says replaces what the session says; null says nothing. ``input``: items in place of the
    conversation's (checked when they are read); ``conversation`` ``none``: its items do not become part of it."""

    audio: ResponseAudio = ResponseAudio()
    conversation: str | None = None
    metadata: dict[str, str] | None = Field(default=None, max_length=16)
    input: list[dict[str, Any]] | None = None
    model: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _null_is_default(cls, value: Any) -> Any:
        return _without_null(value)


def _without_null(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: _without_null(one) for name, one in value.items() if one is not None}
