"""What the user said, in writing: beside the answer, which never waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lluda.engine.request import Completion, Token
from lluda.serving.http.errors import from_error
from lluda.serving.realtime.conversation.items import MessageItem, Part
from lluda.serving.realtime.events.server_events import TranscriptionCompleted, TranscriptionDelta, TranscriptionFailed
from lluda.serving.realtime.events.session_fields import Transcription
from lluda.serving.realtime.turns.sound_format import HEARD_RATE
from lluda.serving.transcription.languages import LANGUAGES
from lluda.serving.transcription.listening import Wish, verbatim_prompt, verbatim_sampling

if TYPE_CHECKING:
    from lluda.api.model import Model
    from lluda.engine.request import Request
    from lluda.serving.realtime.conversation.conversation import Conversation
    from lluda.serving.realtime.outbox import Outbox
    from lluda.serving.service import Service

_LAST = 1
"""Priority: after those that somebody waits for."""


class Transcripts:
    """One turn after the other, each once ``may_begin`` is set: when an answer's sound is on its way, or none is
    made."""

    def __init__(
        self, service: Service, outbox: Outbox, conversation: Conversation, may_begin: asyncio.Event, salt: bytes
    ) -> None:
        self._service, self._outbox, self._conversation = service, outbox, conversation
        self._may_begin, self._salt = may_begin, salt
        self._waiting: asyncio.Queue[tuple[MessageItem, Transcription]] = asyncio.Queue()

    def ask(self, item: MessageItem, wish: Transcription) -> None:
        """The sound of ``item`` is to be written down."""
        self._waiting.put_nowait((item, wish))

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            item, wish = await self._waiting.get()
            await self._may_begin.wait()
            for index, part in enumerate(item.parts):
                if part.kind == "input_audio" and self._conversation.get(item.id) is item:
                    await self._write(item, index, part, wish)

    async def _write(self, item: MessageItem, index: int, part: Part, wish: Transcription) -> None:
        place: dict[str, Any] = {"item_id": item.id, "content_index": index}
        try:
            async with self._service.admit("realtime.transcription", None, salt=self._salt) as ticket:
                request = await self._service.in_worker(_request, self._service.model, part, wish)
                text = ""
                async for event in ticket.submit(request):
                    if isinstance(event, Token) and event.text and event.id not in request.end_ids:
                        delta = event.text if text else event.text.lstrip()
                        text += delta
                        if delta:
                            self._outbox.put(TranscriptionDelta(**place, delta=delta))
                    elif isinstance(event, Completion):
                        text = event.text.strip()
        except Exception as error:  # of this transcript: the session goes on
            found = from_error(error)
            told = {"type": found.type, "code": found.code, "message": found.message, "param": found.param}
            self._outbox.put(TranscriptionFailed(**place, error=told))
            return
        part.text = text
        usage = {"type": "duration", "seconds": part.seconds}
        self._outbox.put(TranscriptionCompleted(**place, transcript=text, usage=usage))


def _request(model: Model, part: Part, wish: Transcription) -> Request:
    language = (wish.language or "").lower().partition("-")[0]
    asked = Wish(language=language if language in LANGUAGES else None, prompt=wish.prompt)
    sound: dict[str, Any] = {"type": "audio", "audio": part.source}
    if isinstance(part.source, np.ndarray):
        sound["sampling_rate"] = HEARD_RATE
    content: list[Mapping[str, Any]] = [sound, {"type": "text", "text": asked.instruction}]
    prompt, media = verbatim_prompt(model, content)
    part.source = media[0]
    return model.request(prompt, verbatim_sampling(asked, part.seconds), priority=_LAST)
