"""One realtime session: what its client sends, in order, and what becomes of it."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from lluda.serving.http.errors import ApiError, from_error, invalid
from lluda.serving.media.data_url import from_base64
from lluda.serving.realtime.answers.answering import chat_options
from lluda.serving.realtime.answers.responder import Responder
from lluda.serving.realtime.answers.responses import Response
from lluda.serving.realtime.conversation.conversation import Conversation
from lluda.serving.realtime.conversation.conversation_edits import ConversationEdits
from lluda.serving.realtime.conversation.items import new_id
from lluda.serving.realtime.conversation.transcripts import Transcripts
from lluda.serving.realtime.events import client_events as client
from lluda.serving.realtime.events import server_events as told
from lluda.serving.realtime.events.beta_names import is_beta, to_beta, to_ga
from lluda.serving.realtime.events.client_items import MOST_SOUND_BYTES
from lluda.serving.realtime.events.session_fields import ResponseFields, SemanticVad, SessionFields
from lluda.serving.realtime.outbox import Outbox
from lluda.serving.realtime.refusal import GONE, INTERNAL_ERROR, POLICY_VIOLATION, UNSUPPORTED_DATA
from lluda.serving.realtime.session_settings import SessionSettings
from lluda.serving.realtime.turns.input_turns import InputTurns, Turn, TurnBegun

if TYPE_CHECKING:
    from starlette.websockets import WebSocket

    from lluda.engine.listening.listener import Listener
    from lluda.serving.service import Service

_QUICK_CHARACTERS = 64 << 10
"""An event of at most so many is read at once; larger ones in a worker."""

_LAST_WORDS_SECONDS = 2.0
"""For what was told to leave, before the connection is closed."""


class Session:
    """One client, from its acceptance to its end. ``given``: fields that hold from the beginning; ``beta``: it speaks
    the API's older names; ``salt`` as `Service.admit` has it."""

    def __init__(
        self, service: Service, socket: WebSocket, given: SessionFields | None, *, beta: bool, salt: bytes
    ) -> None:
        """ApiError 400: ``given`` cannot be."""
        self._service, self._socket, self._beta, self._salt = service, socket, beta, salt
        self.id = new_id("sess")
        self._expires = time.time() + service.limits.realtime_session_seconds
        self._settings = SessionSettings(service)
        if given is not None:
            self._settings = self._settings.updated(given)
        self._outbox = Outbox(socket, service.limits, self._renamed)
        self._conversation = Conversation(service.limits)
        self._responder = Responder(service, self._outbox, self._conversation, self._settled, self._first_sound, salt)
        self._edits = ConversationEdits(service, self._outbox, self._conversation, self._responder)
        self._transcripts = Transcripts(service, self._outbox, self._conversation, self._responder.quiet, salt)
        unclear = service.model.unclear_answer
        self._turns = InputTurns(
            self._settings,
            service.limits,
            self._listen,
            self._turn_begun,
            self._turn_over,
            unclear.id if unclear else None,
        )
        self._close: tuple[int, str] | None = None
        self._ended = asyncio.Event()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being answered."""
        return self._responder.is_idle

    def end(self, code: int, error: BaseException) -> None:
        """Tell the client ``error``, and close with ``code``."""
        if self._close is None:
            found = from_error(error)
            self._refuse(found, None)
            self._close = (code, found.code)
            self._ended.set()

    async def run(self) -> None:
        """Serve until the client leaves or the session ends."""
        loop = asyncio.get_running_loop()
        self._outbox.put(told.SessionCreated(session=self._describe()))
        self._outbox.put(
            told.ConversationCreated(conversation={"id": self._conversation.id, "object": "realtime.conversation"})
        )
        expired = ApiError(400, "session_expired", "the session has lasted as long as it may; open another one")
        clock = loop.call_later(self._service.limits.realtime_session_seconds, self.end, 1000, expired)
        sending = loop.create_task(self._outbox.send())
        tasks = [
            sending,
            *(loop.create_task(one) for one in (self._receive(), self._ended.wait(), self._transcripts.run())),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                error = task.exception()
                if error is not None and not isinstance(error, GONE):
                    self.end(INTERNAL_ERROR, error)
        finally:
            clock.cancel()
            for task in tasks[1:]:
                task.cancel()
            self._turns.close()
            await self._responder.close()
            await self._leave(sending)
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _leave(self, sending: asyncio.Task[None]) -> None:
        """Send what is left and close, if the client is still there."""
        if self._outbox.overflow.is_set():
            self._close = (POLICY_VIOLATION, "unread output")
        elif self._close is not None and not sending.done():
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WORDS_SECONDS):
                    await self._outbox.emptied()
        sending.cancel()
        if self._close is not None:
            with suppress(TimeoutError, *GONE):  # it reads nothing, or has left
                async with asyncio.timeout(_LAST_WORDS_SECONDS):
                    await self._socket.close(*self._close)

    async def _receive(self) -> None:
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            text = message.get("text")
            if text is None:
                self._close = (UNSUPPORTED_DATA, "text frames only")
                return
            await self._handle(text)

    async def _handle(self, text: str) -> None:
        number: str | None = None
        try:
            quick = len(text) <= _QUICK_CHARACTERS
            value = client.read_json(text) if quick else await self._service.in_worker(client.read_json, text)
            given = value.get("event_id")
            number = given if isinstance(given, str) and len(given) <= client.MOST_ID else None
            self._beta = self._beta or is_beta(value)
            await self._take(client.read_event(to_ga(value)))
        except Exception as error:  # of this event: the session goes on
            self._refuse(from_error(error), number)

    async def _take(self, event: client.ClientEvent) -> None:
        match event:
            case client.SessionUpdate():
                self._settings = self._settings.updated(event.session)
                self._turns.configure(self._settings)
                self._turns.listen_again()
                self._outbox.put(told.SessionUpdated(session=self._describe()))
            case client.Append():
                await self._append(event.audio)
            case client.Commit():
                self._turn_over(self._turns.commit())
            case client.Clear():
                self._turns.clear()
                self._outbox.put(told.Cleared())
            case client.ItemEvent():
                await self._edits.take(event, self._settings.input_format)
                self._turns.listen_again()
            case client.ResponseCreate():
                await self._create(event.response)
            case client.ResponseCancel():
                if not self._responder.cancel("client_cancelled", event.response_id):
                    words = "Cancellation failed: no active response found"
                    raise invalid(words, None, "response_cancel_not_active")
            case client.OutputClear():
                self._responder.cancel("client_cancelled")

    async def _append(self, audio: str) -> None:
        if not self._service.model.can_hear:
            raise invalid("this model takes text only", "audio", "unsupported_value")
        if not audio:
            return
        if len(audio) <= _QUICK_CHARACTERS:
            data = from_base64(audio, "audio", MOST_SOUND_BYTES)
        else:
            data = await self._service.in_worker(from_base64, audio, "audio", MOST_SOUND_BYTES)
        await self._turns.append(data)

    async def _create(self, wish: ResponseFields | None) -> None:
        if self._settings.is_transcription:
            raise invalid("a transcription session has no responses", "type", "unsupported_value")
        self._responder.check_free(wish)
        wish = wish or ResponseFields()
        given = await self._edits.input_of(wish, self._settings.input_format)
        self._responder.create(self._settings, wish, given)

    def _listen(self) -> Listener:
        """What the user says next, behind the conversation as it stands."""
        settings = self._settings.answer()
        messages = self._conversation.reading(settings.instructions).messages
        spoken = settings.speaker is not None
        judged = isinstance(self._settings.turn_detection, SemanticVad)
        return self._service.model.listen(
            messages, spoken=spoken, judged=judged, salt=self._salt, **chat_options(settings)
        )

    def _turn_begun(self, turn: TurnBegun) -> None:
        began = time.monotonic()
        self._outbox.put(turn.event)
        if turn.interrupts:
            metrics = self._service.metrics
            stopped = lambda: metrics.barge_in_stop.observe(time.monotonic() - began)  # noqa: E731
            if self._responder.cancel("turn_detected", told=stopped):
                metrics.barge_ins.inc()

    def _turn_over(self, turn: Turn) -> None:
        if turn.stopped is not None:
            self._outbox.put(turn.stopped)
        self._outbox.put(told.Committed(item_id=turn.item.id, previous_item_id=self._conversation.last_id))
        self._edits.add(turn.item)
        if isinstance(turn.stopped, told.SpeechStopped):
            self._service.metrics.vad_turns.inc()
        wish = self._settings.transcription
        if wish is not None:
            self._transcripts.ask(turn.item, wish)
        if turn.answers and not self._settings.is_transcription:
            self._responder.answer(self._settings, turn.ended_at, waits=True)

    def _first_sound(self, response: Response) -> None:
        self._service.metrics.first_sound.observe(time.monotonic() - response.asked.ended_at)
        self._turns.answering(True)

    def _settled(self, response: Response) -> None:
        lead = response.pace.lead
        self._turns.await_speech(lead)
        asyncio.get_running_loop().call_later(lead, self._is_silent)

    def _is_silent(self) -> None:
        if self._responder.is_idle:
            self._turns.answering(False)

    def _describe(self) -> dict[str, Any]:
        own = {"id": self.id, "object": "realtime.session", "expires_at": int(self._expires)}
        factor = self._service.sessions.slow_speech
        slow = {} if factor is None else {"speech_real_time_factor": round(factor, 2)}
        return {**self._settings.describe(), **own, **slow}

    def _renamed(self, event: told.ServerEvent) -> Any:
        return to_beta(event) if self._beta else event

    def _refuse(self, error: ApiError, number: str | None) -> None:
        found = told.ErrorObject(
            type=error.type, message=error.message, code=error.code, param=error.param, event_id=number
        )
        self._outbox.put(told.ErrorEvent(error=found))
