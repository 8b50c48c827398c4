"""One answer of a session, from ``response.created`` to ``response.done``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lluda.serving.http.errors import ApiError, from_error
from lluda.serving.reading.pieces import CallArguments, CallEnded, CallStarted, Content, Finished, Piece, Sound
from lluda.serving.realtime.answers.answering import Cost, Read, answering
from lluda.serving.realtime.answers.output_items import Output, OutputCall, OutputMessage
from lluda.serving.realtime.answers.speech_pace import SpeechPace
from lluda.serving.realtime.conversation.items import new_id
from lluda.serving.realtime.conversation.truncation import heard_text, likely_seconds
from lluda.serving.realtime.events.server_events import ResponseCreated, ResponseDone, ServerEvent
from lluda.serving.realtime.session_settings import AnswerSettings
from lluda.serving.realtime.turns.sound_format import SPOKEN_RATE, SoundEncoder

if TYPE_CHECKING:
    from lluda.serving.realtime.conversation.conversation import Conversation
    from lluda.serving.realtime.outbox import Outbox
    from lluda.serving.service import Service

Outcome = Literal["completed", "cancelled", "failed", "incomplete"]
CancelReason = Literal["turn_detected", "client_cancelled"]

_DELTA_SECONDS = 0.2
"""Of sound in one event, at most."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked for. ``conversation`` None: the answer becomes part of none; ``metadata`` comes back unchanged;
    ``ended_at``: since when somebody waits for it, by ``time.monotonic``; ``salt`` as `Service.admit` has it."""

    settings: AnswerSettings
    read: Read
    conversation: Conversation | None
    metadata: dict[str, str] | None
    ended_at: float
    salt: bytes


class Response:
    """Its events go to ``outbox``. ``first_sound`` is called when the first of its sound has left, ``over`` when the
    last event was told. After that nothing of it is told, whatever the engine does."""

    def __init__(
        self,
        service: Service,
        outbox: Outbox,
        asked: Asked,
        first_sound: Callable[[Response], object],
        over: Callable[[Response], object],
    ) -> None:
        self.id = new_id("resp")
        self.asked = asked
        self.pace = SpeechPace()
        self.status: Outcome | Literal["in_progress"] = "in_progress"
        self._service, self._outbox = service, outbox
        self._first_sound, self._over = first_sound, over
        self._is_heard = False
        self._details: dict[str, Any] | None = None
        self._cost = Cost()
        self._output = Output(self.id, asked.conversation, self._tell)
        self._message: OutputMessage | None = None
        self._call: OutputCall | None = None
        self._held: list[Piece] = []  # calls, while the words before them are spoken
        sound = asked.settings.format
        self._encoder = SoundEncoder(sound.type, sound.rate)  # type: ignore[arg-type]
        self._task: asyncio.Task[None] | None = None

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.status != "in_progress"

    def start(self) -> asyncio.Task[None]:
        """Tell that it has begun, and begin; the task that answers."""
        self._tell(ResponseCreated(response=self.describe()))
        self._task = asyncio.get_running_loop().create_task(self._run())
        return self._task

    def cancel(self, reason: CancelReason, told: Callable[[], object] | None = None) -> None:
        """End it now: what of it was not sent never is, and the engine stops. ``told`` is called when the last event
        has left."""
        if self.is_over:
            return
        self._outbox.drop(self.id)
        if self._task is not None:
            self._task.cancel()
        message = self._message
        if message is not None and self._is_spoken:
            text, sent = message.part.text or "", message.part.seconds
            message.part.text = heard_text(text, sent, likely_seconds(text, sent))
        self._end("cancelled", {"type": "cancelled", "reason": reason}, told)

    def describe(self) -> dict[str, Any]:
        """As OpenAI writes it."""
        conversation = self.asked.conversation
        return {
            "object": "realtime.response",
            "id": self.id,
            "status": self.status,
            "status_details": self._details,
            "conversation_id": None if conversation is None else conversation.id,
            **self.asked.settings.describe(),
            "metadata": self.asked.metadata,
            "output": [item.describe() for item in self._output.items],
            "usage": self._usage() if self.is_over else None,
        }

    @property
    def _is_spoken(self) -> bool:
        return self.asked.settings.speaker is not None

    def _tell(self, event: ServerEvent, *, droppable: bool = False, sent: Callable[[], object] | None = None) -> None:
        if not self.is_over or isinstance(event, ResponseDone):
            self._outbox.put(event, self.id if droppable else None, sent)

    async def _run(self) -> None:
        asked = self.asked
        try:
            async with answering(self._service, asked.read, asked.settings, self._cost, asked.salt) as pieces:
                async for piece in pieces:
                    await self._take(piece)
        except Exception as error:  # of this answer: the session goes on
            found = from_error(error)
            if not self.is_over:
                self._end("failed", {"type": "failed", "error": _error(found)})

    async def _take(self, piece: Piece) -> None:
        match piece:
            case Content(text=text) if text:
                self._open_message().say(text)
            case Sound(samples=samples):
                step = int(_DELTA_SECONDS * SPOKEN_RATE)
                for start in range(0, len(samples), step):
                    await self._sound(self._encoder.push(samples[start : start + step]))
            case CallStarted() | CallArguments() | CallEnded():
                if self._message is not None and self._is_spoken:
                    self._held.append(piece)
                else:
                    self._take_call(piece)
            case Finished(reason=reason):
                await self._sound(self._encoder.finish())
                self._end_message("completed" if reason != "length" else "incomplete")
                for held in self._held:
                    self._take_call(held)
                if reason == "length":
                    self._end("incomplete", {"type": "incomplete", "reason": "max_output_tokens"})
                else:
                    self._end("completed", None)

    async def _sound(self, data: bytes) -> None:
        if not data:
            return
        sound = self.asked.settings.format
        seconds = len(data) / sound.sample_bytes / sound.rate
        await self.pace.take(seconds)
        self._open_message().sound(data, seconds)

    def _open_message(self) -> OutputMessage:
        if self._message is None:
            self._message = OutputMessage(self._output, spoken=self._is_spoken, heard=self._left)
        return self._message

    def _left(self) -> None:
        """A piece of sound was sent."""
        if not self._is_heard:
            self._is_heard = True
            self._first_sound(self)

    def _end_message(self, status: Literal["completed", "incomplete"]) -> None:
        if self._message is not None:
            self._message.end(status)
            self._message = None

    def _take_call(self, piece: Piece) -> None:
        self._end_message("completed")
        match piece:
            case CallStarted(id=number, name=name):
                self._call = OutputCall(self._output, number, name)
            case CallArguments(text=text) if self._call is not None:
                self._call.more(text)
            case CallEnded() if self._call is not None:
                self._call.end("completed")
                self._call = None

    def _end(self, outcome: Outcome, details: dict[str, Any] | None, told: Callable[[], object] | None = None) -> None:
        if self._call is not None:
            self._call.end("incomplete")
        self._end_message("incomplete")
        self.status, self._details = outcome, details
        self._tell(ResponseDone(response=self.describe()), sent=told)
        self._over(self)

    def _usage(self) -> dict[str, Any]:
        cost = self._cost
        audio, image = cost.media.audio, cost.media.image
        text = cost.prompt - audio - image
        return {
            "total_tokens": cost.prompt + cost.text + cost.frames,
            "input_tokens": cost.prompt,
            "output_tokens": cost.text + cost.frames,
            "input_token_details": {
                "text_tokens": text,
                "audio_tokens": audio,
                "image_tokens": image,
                "cached_tokens": cost.cached,
            },
            "output_token_details": {"text_tokens": cost.text, "audio_tokens": cost.frames},
        }


def _error(error: ApiError) -> dict[str, Any]:
    return {"type": error.type, "code": error.code, "message": error.message}
