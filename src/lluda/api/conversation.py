"""A multi-turn chat whose turns compute only what is new in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast

from lluda.engine.engine import Engine
from lluda.engine.media import EncodedMedia
from lluda.engine.prompt_rows import PromptRows
from lluda.engine.request import Completion, Request, SpeechEvent, Token
from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.engine.speech.speech import SpeechStack
from lluda.engine.speech.speech_params import SpeechParams
from lluda.engine.stream import Stream
from lluda.inputs.chat.chat_options import ChatOptions
from lluda.inputs.chat.prompt import with_answer
from lluda.inputs.media.media_parts import with_sources

Message = Mapping[str, Any]
"""``{"role": "user" | "assistant" | "system" | "tool", "content": str or list of parts}``; a part is ``{"type": "text",
"text": …}`` or, for an Omni model, a medium (`MediaPart`)."""

_Event = TypeVar("_Event", bound=SpeechEvent)


class ConversationModel(Protocol):
    """What a conversation asks of its `Model`, with its words."""

    engine: Engine

    def chosen(
        self, params: SamplingParams | None, options: Mapping[str, Any], chat: ChatOptions | None = None
    ) -> tuple[ChatOptions, SamplingParams]:
        """Keyword arguments, sorted."""

    def read_prompt(self, messages: Sequence[Message], chat: ChatOptions) -> tuple[PromptRows, list[EncodedMedia]]:
        """The rows of the messages, and their media."""

    def request(self, prompt: PromptRows, params: SamplingParams, **options: Any) -> Request:
        """The request for an answer."""

    def speech_stack(self) -> SpeechStack:
        """What speaks."""


@dataclass(slots=True)
class Conversation:
    """The ``messages`` so far with ``model``, and the ``options`` of every turn. A turn begins with the rows that the
    engine retains of the turn before, and computes only what is new.

    In ``messages`` a medium of an earlier turn is what was made of it then (`EncodedMedia`), whatever became of its
    file or array since.
    """

    model: ConversationModel
    messages: list[Message]
    options: ChatOptions = field(default_factory=ChatOptions)

    def ask(
        self,
        content: str | Sequence[Mapping[str, Any]],
        params: SamplingParams | None = None,
        **options: Any,
    ) -> Iterator[Token | Completion]:
        """Add a user message, a text or parts with media, and stream the answer. An answer that is broken off (the
        iterator is closed) is kept as far as it came; a request that is refused leaves the conversation as it was.
        ``options`` as in `Model.chat`, for this turn alone."""
        return self.send([{"role": "user", "content": content}], params, **options)

    def send(
        self, new: Sequence[Message], params: SamplingParams | None = None, **options: Any
    ) -> Iterator[Token | Completion]:
        """As `ask`, for messages of any role: results of tools that the answer before called, or an assistant message
        whose rest is wanted (``continue_final_message``)."""
        chat, chosen = self.model.chosen(params, options, self.options)
        prompt, media = self.model.read_prompt([*self.messages, *new], chat)
        messages = with_sources([*self.messages, *new], media)
        request = self.model.request(prompt, chosen, reuse="any")
        return self._answer(messages, chat, cast("Stream[Token | Completion]", self.model.engine.submit(request)))

    def speak(
        self,
        content: str | Sequence[Mapping[str, Any]],
        params: SamplingParams | None = None,
        speech: SpeechParams | None = None,
        *,
        speaker: str | None = None,
        **options: Any,
    ) -> Iterator[SpeechEvent]:
        """As `ask`, the answer spoken too: the events of `Model.speak`. Turns may be asked and spoken in any order,
        each by a speaker of its own. Errors as `Model.speak`."""
        return self.send_spoken([{"role": "user", "content": content}], params, speech, speaker=speaker, **options)

    def send_spoken(
        self,
        new: Sequence[Message],
        params: SamplingParams | None = None,
        speech: SpeechParams | None = None,
        *,
        speaker: str | None = None,
        **options: Any,
    ) -> Iterator[SpeechEvent]:
        """As `send`, the answer spoken too."""
        self.model.speech_stack().prompts.speaker_id(speaker)
        chat, chosen = self.model.chosen(params, options, self.options)
        prompt, media = self.model.read_prompt([*self.messages, *new], chat)
        messages = with_sources([*self.messages, *new], media)
        request = self.model.request(prompt, chosen, spoken=True, speech=speech, speaker=speaker, reuse="any")
        return self._answer(messages, chat, self.model.engine.submit(request))

    def _answer(self, messages: list[Message], chat: ChatOptions, events: Iterator[_Event]) -> Iterator[_Event]:
        parts: list[str] = []
        try:
            for event in events:
                if isinstance(event, Token):
                    parts.append(event.text)
                yield event
        finally:
            self.messages = with_answer(messages, "".join(parts), chat.continued_key)
