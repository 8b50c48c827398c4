"""The output side of a session: one answer at a time, and what waits for it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from lluda.serving.http.errors import invalid
from lluda.serving.realtime.answers.responses import Asked, CancelReason, Response
from lluda.serving.realtime.conversation.conversation import Reading
from lluda.serving.realtime.conversation.items import Item
from lluda.serving.realtime.events.session_fields import ResponseFields
from lluda.serving.realtime.session_settings import SessionSettings

if TYPE_CHECKING:
    from lluda.serving.realtime.conversation.conversation import Conversation
    from lluda.serving.realtime.outbox import Outbox
    from lluda.serving.service import Service

_log = logging.getLogger(__name__)

_NOTED_SECONDS = 0.5
"""Of waiting in one answer, from which on the machine is called slow; once a session in the log."""

_MEASURED_SECONDS = 1.0
"""Of sound, from which on an answer tells how fast speech is made."""

_ASIDE = 16
"""Answers beside the conversation's that may be under way."""


class Responder:
    """``settled`` is called when nothing is being answered any more, ``first_sound`` when an answer's sound begins to
    leave."""

    def __init__(
        self,
        service: Service,
        outbox: Outbox,
        conversation: Conversation,
        settled: Callable[[Response], object],
        first_sound: Callable[[Response], object],
        salt: bytes,
    ) -> None:
        self._service, self._outbox, self._conversation = service, outbox, conversation
        self._settled, self._first_sound, self._salt = settled, first_sound, salt
        self.active: Response | None = None
        self.quiet = asyncio.Event()
        """Whether nobody waits for an answer's first sound."""
        self.quiet.set()
        self._aside: set[Response] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._pending: Callable[[], None] | None = None
        self._was_slow = False

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being answered."""
        return self.active is None and not self._aside

    def answer(self, settings: SessionSettings, ended_at: float, *, waits: bool = False) -> None:
        """Answer the conversation as it stands; ``waits``: after the answer that is under way, if there is one."""
        if self.active is not None and waits:
            self._pending = lambda: self.answer(settings, ended_at)
            return
        self._start(Asked(settings.answer(), self._reader(settings), self._conversation, None, ended_at, self._salt))

    def create(self, settings: SessionSettings, wish: ResponseFields, given: list[Item] | None) -> None:
        """Answer as the client wishes; ``given``: items in place of the conversation's. ApiError 400: it contradicts
        itself, or an answer is under way."""
        if wish.conversation not in (None, "auto", "none", self._conversation.id):
            words = f"response.conversation must be auto or none, not {wish.conversation!r:.60}"
            raise invalid(words, "response.conversation")
        answer = settings.answer(wish)
        if answer.tools.must_call and not answer.tools.functions:
            raise invalid("tool_choice required needs tools", "response.tool_choice")
        into = None if wish.conversation == "none" else self._conversation
        read = self._reader(settings, answer.instructions, given)
        self._start(Asked(answer, read, into, wish.metadata, time.monotonic(), self._salt))

    def cancel(self, reason: CancelReason, number: str | None = None, told: Callable[[], object] | None = None) -> bool:
        """Whether there was an answer to be cancelled: of the id ``number``, or (None) of the conversation."""
        self._pending = None
        found = self.active
        if number is not None:
            found = next((one for one in (self.active, *self._aside) if one is not None and one.id == number), None)
        if found is None:
            return False
        found.cancel(reason, told)
        return True

    async def close(self) -> None:
        """The client has left: stop all, and wait until the engine was told."""
        self._pending = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def check_free(self, wish: ResponseFields | None) -> None:
        """ApiError 400: an answer is under way, and this one cannot be beside it."""
        if wish is not None and wish.conversation == "none":
            if len(self._aside) >= _ASIDE:
                words = f"{_ASIDE} responses beside the conversation are under way; wait for one of them"
                raise invalid(words, None, "too_many_responses")
        elif self.active is not None:
            words = f"the response {self.active.id} is under way; wait for its response.done, or cancel it"
            raise invalid(words, None, "conversation_already_has_active_response")

    def _start(self, asked: Asked) -> None:
        response = Response(self._service, self._outbox, asked, self._sounds, self._is_over)
        if asked.conversation is None:
            self._aside.add(response)
        else:
            self.active = response
            self.quiet.clear()
        task = response.start()
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _reader(
        self, settings: SessionSettings, instructions: str | None = None, given: list[Item] | None = None
    ) -> Callable[[bool], Reading | None]:
        words = settings.fields.instructions if instructions is None else instructions
        forgets = given is None and settings.fields.truncation != "disabled"

        def read(shorter: bool) -> Reading | None:
            if shorter and not (forgets and self._conversation.forget()):
                return None
            return self._conversation.reading(words, given)

        return read

    def _sounds(self, response: Response) -> None:
        self.quiet.set()
        self._first_sound(response)

    def _note_speed(self, response: Response) -> None:
        pace = response.pace
        is_slow = pace.waited > _NOTED_SECONDS
        if is_slow or pace.sent >= _MEASURED_SECONDS:
            self._service.sessions.slow_speech = pace.real_time_factor if is_slow else None
        if is_slow and not self._was_slow:
            self._was_slow = True
            _log.warning(
                "speech is made slower than it is played (real-time factor %.2f): a listener had to wait for %.1f s",
                pace.real_time_factor,
                pace.waited,
            )

    def _is_over(self, response: Response) -> None:
        self._aside.discard(response)
        self._note_speed(response)
        if response is self.active:
            self.active = None
            self.quiet.set()
        pending, self._pending = self._pending, None
        if pending is not None and self.active is None:
            pending()
        elif self.is_idle:
            self._settled(response)
