"""Bodies of /v1/audio/speech, /v1/audio/transcriptions and /v1/audio/translations."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from lluda.serving.transcription.languages import LANGUAGES
from lluda.serving.wire.chat import Voice
from lluda.serving.wire.wire_model import FormModel, WireModel

OPENAI_AUDIO_MODELS = frozenset(
    {
        *("tts-1", "tts-1-1106", "tts-1-hd", "tts-1-hd-1106", "gpt-4o-mini-tts", "whisper-1"),
        *("gpt-4o-transcribe", "gpt-4o-mini-transcribe", "gpt-4o-transcribe-diarize"),
    }
)
"""OpenAI's names of models of sound, which clients send by default: taken as the served model."""


def _only_one(speed: float) -> float:
    if speed != 1:
        raise PydanticCustomError("unsupported_value", "must be 1: speech is made at the model's own speed")
    return speed


class SpeechBody(WireModel):
    """``instructions`` are ignored, with a warning. ``speech_seed``, ``speech_temperature`` and ``max_audio_seconds``
    as in a chat."""

    model: str
    input: str = Field(min_length=1)
    voice: Voice
    instructions: str | None = None
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] | None = None
    speed: Annotated[float, Field(ge=0.25, le=4), AfterValidator(_only_one)] | None = None
    stream_format: Literal["audio", "sse"] | None = None
    speech_seed: int | None = Field(default=None, ge=0, le=2**64 - 1)
    speech_temperature: float | None = Field(default=None, ge=0, le=2)
    max_audio_seconds: float | None = Field(default=None, gt=0)


def _known_language(code: str) -> str:
    if code not in LANGUAGES:
        raise PydanticCustomError("unsupported_value", f"must be one of {', '.join(LANGUAGES)}")
    return code


def _short(text: str) -> str:
    if len(text.encode()) > _PROMPT_BYTES:
        raise PydanticCustomError("invalid_value", f"may have up to {_PROMPT_BYTES} bytes")
    return text


def _parsed(value: object) -> object:
    """JSON of a form's field as an object."""
    if isinstance(value, str) and value.startswith("{"):
        try:
            return json.loads(value)
        except ValueError:
            raise PydanticCustomError("invalid_value", "must be auto or a JSON object") from None
    return value


def _whole_segments(granularity: str) -> str:
    if granularity == "word":
        raise PydanticCustomError("unsupported_value", "must be segment: the times of single words are not known here")
    return granularity


_PROMPT_BYTES = 4096
_Prompt = Annotated[str, AfterValidator(_short)]
_Format = Literal["json", "text", "verbose_json", "srt", "vtt"]
_File = Annotated[bytes, Field(json_schema_extra={"format": "binary"})]


class Chunking(FormModel):
    """How a long recording is cut: ``threshold`` is the probability from which it is speech, and
    ``silence_duration_ms`` the shortest pause that is cut. A cut lies in the middle of a pause, so that
    ``prefix_padding_ms`` has no meaning here."""

    type: Literal["server_vad"]
    threshold: float = Field(default=0.5, ge=0, le=1)
    silence_duration_ms: int = Field(default=200, ge=0, le=10_000)
    prefix_padding_ms: int | None = Field(default=None, ge=0, le=10_000)


class TranslationForm(FormModel):
    """A recording to be written down in English."""

    file: _File
    model: str
    prompt: _Prompt | None = None
    response_format: _Format | None = None
    temperature: float | None = Field(default=None, ge=0, le=1)


class TranscriptionForm(TranslationForm):
    """A recording to be written down in its own language. ``language``: ISO 639-1."""

    language: Annotated[str, AfterValidator(_known_language)] | None = None
    stream: bool | None = None
    timestamp_granularities: list[Annotated[Literal["segment", "word"], AfterValidator(_whole_segments)]] | None = None
    include: list[Literal["logprobs"]] | None = None
    chunking_strategy: Annotated[Literal["auto"] | Chunking, BeforeValidator(_parsed)] | None = None
