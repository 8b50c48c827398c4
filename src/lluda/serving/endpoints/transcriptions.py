"""POST /v1/audio/transcriptions, /v1/audio/translations: a recording written down."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from lluda.serving.http.errors import invalid
from lluda.serving.http.form import read_form
from lluda.serving.http.json_response import json_response
from lluda.serving.http.route import ApiRoute
from lluda.serving.http.sse import EventStream, event
from lluda.serving.service import Service
from lluda.serving.transcription.forms import CONTENT_TYPES, plain_object, srt, usage_object, verbose_object, vtt
from lluda.serving.transcription.languages import LANGUAGES
from lluda.serving.transcription.listening import Wish, written_down
from lluda.serving.transcription.pieces import PAUSE_SECONDS, THRESHOLD
from lluda.serving.transcription.recording import Recording, read_recording
from lluda.serving.transcription.transcript import Transcript
from lluda.serving.wire.audio import OPENAI_AUDIO_MODELS, Chunking, TranscriptionForm, TranslationForm

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """A recording, and what is to be made of it."""

    content: bytes
    wish: Wish
    form: str
    threshold: float = THRESHOLD
    pause_seconds: float = PAUSE_SECONDS


async def transcriptions(request: Request) -> Response:
    """The words of a recording, in the language that is spoken."""
    service: Service = request.app.state.service
    form = await read_form(request, TranscriptionForm)
    _check(service, form)
    job = _transcription(form)
    if not form.stream:
        return await _whole(service, request, job, with_logprobs=bool(form.include))
    if job.form not in ("json", "text"):
        raise invalid(f"stream has no {job.form}; ask for json", "stream", "unsupported_value")
    return EventStream(_streamed(service, request, job), ping_seconds=service.limits.ping_seconds)


async def translations(request: Request) -> Response:
    """The words of a recording, in English."""
    service: Service = request.app.state.service
    form = await read_form(request, TranslationForm)
    _check(service, form)
    wish = Wish(translates=True, prompt=form.prompt, temperature=form.temperature or 0.0, logprobs=_is_verbose(form))
    return await _whole(service, request, _Job(content=form.file, wish=wish, form=form.response_format or "json"))


def _check(service: Service, form: TranslationForm) -> None:
    """ApiError: 404 another model; 400 one that does not hear, or a file too large."""
    if form.model not in OPENAI_AUDIO_MODELS:
        service.check_model(form.model)
    if not service.model.can_hear:
        raise invalid("this model hears nothing: sound needs an Omni checkpoint", "model", "unsupported_value")
    most = service.limits.audio_file_bytes
    if len(form.file) > most:
        raise invalid(f"file has {len(form.file):,} bytes, and {most:,} are taken; compress it or cut it up", "file")


def _transcription(form: TranscriptionForm) -> _Job:
    chunking = form.chunking_strategy if isinstance(form.chunking_strategy, Chunking) else None
    wish = Wish(
        language=form.language,
        prompt=form.prompt,
        temperature=form.temperature or 0.0,
        logprobs=bool(form.include) or _is_verbose(form),
    )
    return _Job(
        content=form.file,
        wish=wish,
        form=form.response_format or "json",
        threshold=chunking.threshold if chunking else THRESHOLD,
        pause_seconds=chunking.silence_duration_ms / 1000 if chunking else PAUSE_SECONDS,
    )


def _is_verbose(form: TranslationForm) -> bool:
    return form.response_format == "verbose_json"


async def _whole(service: Service, request: Request, job: _Job, *, with_logprobs: bool = False) -> Response:
    async with service.admit("transcriptions", request) as ticket:
        recording = await _recording(service, job)
        transcript = Transcript(recording.seconds)
        async for _ in written_down(service, ticket, recording, job.wish, transcript):
            pass
    return _answer(job, transcript, with_logprobs)


def _answer(job: _Job, transcript: Transcript, with_logprobs: bool) -> Response:
    match job.form:
        case "json":
            return json_response(plain_object(transcript, logprobs=with_logprobs))
        case "verbose_json":
            task = "translate" if job.wish.translates else "transcribe"
            language = "english" if job.wish.translates else LANGUAGES.get(job.wish.language or "", "unknown").lower()
            return json_response(
                verbose_object(transcript, task=task, language=language, temperature=job.wish.temperature)
            )
        case "srt":
            text = srt(transcript)
        case "vtt":
            text = vtt(transcript)
        case _:
            text = transcript.text + "\n"
    return Response(text, media_type=CONTENT_TYPES[job.form])


async def _streamed(service: Service, request: Request, job: _Job) -> AsyncGenerator[bytes]:
    async with service.admit("transcriptions", request) as ticket:
        recording = await _recording(service, job)
        transcript = Transcript(recording.seconds)
        async for text in written_down(service, ticket, recording, job.wish, transcript):
            yield _event("transcript.text.delta", {"delta": text})
    yield _event("transcript.text.done", {"text": transcript.text, "usage": usage_object(transcript)})


def _event(kind: str, fields: dict[str, object]) -> bytes:
    return event(kind, {"type": kind, **fields})


async def _recording(service: Service, job: _Job) -> Recording:
    limits = service.limits
    return await service.in_worker(
        read_recording,
        job.content,
        max_seconds=limits.audio_seconds,
        window_seconds=limits.transcription_window_seconds,
        threshold=job.threshold,
        pause_seconds=job.pause_seconds,
    )


ROUTES = (
    ApiRoute(
        "POST",
        "/v1/audio/transcriptions",
        transcriptions,
        summary="A recording written down",
        form=TranscriptionForm,
        answers=("application/json", "text/plain", "text/event-stream"),
    ),
    ApiRoute(
        "POST",
        "/v1/audio/translations",
        translations,
        summary="A recording written down in English",
        form=TranslationForm,
        answers=("application/json", "text/plain"),
    ),
)
