"""Messages of a chat and their parts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from lluda.serving.wire.tools import by_type
from lluda.serving.wire.wire_model import WireModel


class TextPart(WireModel):
    """Text."""

    type: Literal["text"]
    text: str


class RefusalPart(WireModel):
    """What an assistant said in place of an answer; text to the model."""

    type: Literal["refusal"]
    refusal: str


class ImageUrl(WireModel):
    """A data URL, or an address where fetching is allowed; ``detail`` has no meaning here."""

    url: str
    detail: str | None = None


class ImagePart(WireModel):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageUrl


class InputAudio(WireModel):
    """Base64 of a recording. What it is, its content says; ``format`` must be one that there is."""

    data: str
    format: Literal["wav", "mp3", "flac", "ogg", "opus", "m4a", "webm"] | None = None


class AudioPart(WireModel):
    """A recording."""

    type: Literal["input_audio"]
    input_audio: InputAudio


class MediaUrl(WireModel):
    """A data URL, or an address where fetching is allowed."""

    url: str


class AudioUrlPart(WireModel):
    """A recording by its address."""

    type: Literal["audio_url"]
    audio_url: MediaUrl


class VideoUrl(WireModel):
    """``fps``: frames sampled a second; ``use_audio_in_video``: its sound track is heard."""

    url: str
    fps: float | None = Field(default=None, gt=0, le=120)
    use_audio_in_video: bool | None = None


class VideoPart(WireModel):
    """A video."""

    type: Literal["video_url"]
    video_url: VideoUrl


def _text_or_parts(value: object) -> str | None:
    return "#content" if isinstance(value, str) else "#parts" if isinstance(value, list) else None


_UserPart = Annotated[
    Annotated[TextPart, Tag("#text")]
    | Annotated[ImagePart, Tag("#image_url")]
    | Annotated[AudioPart, Tag("#input_audio")]
    | Annotated[AudioUrlPart, Tag("#audio_url")]
    | Annotated[VideoPart, Tag("#video_url")],
    Discriminator(
        by_type,
        custom_error_type="unsupported_value",
        custom_error_message="must have a type of text, image_url, input_audio, audio_url or video_url",
    ),
]
_AssistantPart = Annotated[
    Annotated[TextPart, Tag("#text")] | Annotated[RefusalPart, Tag("#refusal")],
    Discriminator(
        by_type,
        custom_error_type="unsupported_value",
        custom_error_message="must have a type of text or refusal: an assistant's message holds nothing else",
    ),
]
_is_text_or_parts = Discriminator(
    _text_or_parts,
    custom_error_type="invalid_value",
    custom_error_message="must be a text or a list of parts",
)
_UserContent = Annotated[
    Annotated[str, Tag("#content")] | Annotated[list[_UserPart], Field(min_length=1), Tag("#parts")], _is_text_or_parts
]
_AssistantContent = Annotated[
    Annotated[str, Tag("#content")] | Annotated[list[_AssistantPart], Field(min_length=1), Tag("#parts")],
    _is_text_or_parts,
]
_TextContent = Annotated[
    Annotated[str, Tag("#content")] | Annotated[list[TextPart], Field(min_length=1), Tag("#parts")], _is_text_or_parts
]


class SystemMessage(WireModel):
    """Instructions; ``developer`` is OpenAI's newer word for them."""

    role: Literal["system", "developer"]
    content: _TextContent
    name: str | None = None


class UserMessage(WireModel):
    """What a user said, showed or let hear."""

    role: Literal["user"]
    content: _UserContent
    name: str | None = None


class CalledFunction(WireModel):
    """A function's name and its arguments, a JSON object as text."""

    name: str
    arguments: str


class ToolCall(WireModel):
    """A call that the assistant made."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class SpokenAnswer(WireModel):
    """A spoken answer of this server, by its id; its other fields, as it was sent, have no meaning."""

    id: str
    data: str | None = None
    expires_at: int | None = None
    transcript: str | None = None


class AssistantMessage(WireModel):
    """An answer of before. ``reasoning_content`` (or ``reasoning``): what was thought; ``audio``: its text is what was
    said there."""

    role: Literal["assistant"]
    content: _AssistantContent | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None
    audio: SpokenAnswer | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    name: str | None = None
    annotations: Any = None
    function_call: None = None


class ToolMessage(WireModel):
    """What a function gave."""

    role: Literal["tool"]
    tool_call_id: str
    content: _TextContent
    name: str | None = None


def _by_role(value: object) -> str | None:
    role = value.get("role") if isinstance(value, dict) else None
    return f"#{'system' if role == 'developer' else role}" if isinstance(role, str) else None


Message = Annotated[
    Annotated[SystemMessage, Tag("#system")]
    | Annotated[UserMessage, Tag("#user")]
    | Annotated[AssistantMessage, Tag("#assistant")]
    | Annotated[ToolMessage, Tag("#tool")],
    Discriminator(
        _by_role,
        custom_error_type="invalid_value",
        custom_error_message="must have a role of system, developer, user, assistant or tool",
    ),
]
