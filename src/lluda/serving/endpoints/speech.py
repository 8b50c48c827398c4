"""POST /v1/audio/speech: a text spoken word for word, sent while it is made."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from lluda.engine.request import SpeechChunk, SpeechCompletion
from lluda.outputs.encoded_audio import CONTENT_TYPES, RecordingEncoder
from lluda.serving.http.body import read_body
from lluda.serving.http.body_stream import BodyStream
from lluda.serving.http.errors import invalid
from lluda.serving.http.route import ApiRoute
from lluda.serving.http.sse import EventStream, data
from lluda.serving.questions.speech import speech_params
from lluda.serving.service import Service
from lluda.serving.wire.audio import OPENAI_AUDIO_MODELS, SpeechBody

if TYPE_CHECKING:
    from lluda.engine.request import Request as EngineRequest

_IGNORED = '299 - "instructions are ignored: the model speaks as it was trained"'
_DEFAULT_FORMAT = "mp3"


@dataclass(slots=True)
class _Spoken:
    """What is spoken, how it is sent, and what it came to."""

    request: EngineRequest
    format: str
    rate: int
    frames: int = 0

    @property
    def usage(self) -> dict[str, int]:
        """Tokens of the text, and frames of the speech."""
        given = sum(len(part) for part in self.request.text or ())
        return {"input_tokens": given, "output_tokens": self.frames, "total_tokens": given + self.frames}


async def speech(request: Request) -> Response:
    """Speech as a sound file, or as server-sent events."""
    service: Service = request.app.state.service
    body = await read_body(request, SpeechBody)
    if body.model not in OPENAI_AUDIO_MODELS:
        service.check_model(body.model)
    spoken = await service.in_worker(_spoken, service, body)
    sound = _sound(service, request, spoken)
    headers = {"warning": _IGNORED} if body.instructions else {}
    if body.stream_format == "sse":
        return EventStream(_events(sound, spoken), ping_seconds=service.limits.ping_seconds)
    return BodyStream(sound, CONTENT_TYPES[spoken.format], headers)


def _spoken(service: Service, body: SpeechBody) -> _Spoken:
    """ApiError 400: a text too long or without anything to speak, or a voice that there is not."""
    most = service.limits.speech_input_characters
    if len(body.input) > most:
        raise invalid(f"input has {len(body.input)} characters, and {most} are spoken at once; cut it up", "input")
    if not body.input.strip():
        raise invalid("input has nothing to speak: white space only", "input")
    speaker = service.voices.resolve(body.voice if isinstance(body.voice, str) else {"id": body.voice.id})
    model = service.model
    params = speech_params(body.speech_seed, body.speech_temperature, body.max_audio_seconds)
    request = model.say_request(body.input, params, speaker=speaker)
    return _Spoken(request, body.response_format or _DEFAULT_FORMAT, model.speech_stack().sample_rate)


async def _sound(service: Service, request: Request, spoken: _Spoken) -> AsyncGenerator[bytes]:
    """The bytes of the recording as they are ready."""
    encoder = await service.in_worker(RecordingEncoder, spoken.format, spoken.rate)  # opening a codec takes 50 ms
    async with service.admit("speech", request) as ticket:
        async for event in ticket.submit(spoken.request):
            if isinstance(event, SpeechChunk):
                if ready := await service.in_worker(encoder.write, event.samples):
                    yield ready
            elif isinstance(event, SpeechCompletion):
                spoken.frames = event.frames
                ticket.outcome = "stop" if event.finish_reason in ("stop", "silent") else "length"
        if last := await service.in_worker(encoder.finish):
            yield last


async def _events(sound: AsyncGenerator[bytes], spoken: _Spoken) -> AsyncGenerator[bytes]:
    async with aclosing(sound):
        async for part in sound:
            yield data({"type": "speech.audio.delta", "audio": base64.b64encode(part).decode()})
    yield data({"type": "speech.audio.done", "usage": spoken.usage})


ROUTES = (
    ApiRoute(
        "POST",
        "/v1/audio/speech",
        speech,
        summary="A text spoken word for word",
        body=SpeechBody,
        answers=(*CONTENT_TYPES.values(), "text/event-stream"),
    ),
)
