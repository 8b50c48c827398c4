"""Opening a `Listener` for the next turn of a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lluda.api.unclear_answer import FIRST_TOKEN
from lluda.engine.listening.listener import Listener
from lluda.engine.media import EncodedMedia
from lluda.engine.prompt_rows import PromptRows
from lluda.engine.request import Request
from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.errors import InvalidRequest
from lluda.inputs.chat.chat_options import ChatOptions
from lluda.inputs.media.media_parts import with_sources

if TYPE_CHECKING:
    from lluda.api.model import Model

AHEAD = 1
"""Priority of what is computed before it is asked for: after all that was."""


class TurnPrompt:
    """The prompt of a conversation whose last message is a recording. Media of ``messages`` are read once."""

    def __init__(self, model: Model, messages: Sequence[Mapping[str, Any]], chat: ChatOptions, salt: bytes) -> None:
        self._model, self._messages, self._chat, self._salt = model, messages, chat, salt

    def __call__(self, sound: EncodedMedia) -> PromptRows:
        """Its rows. Errors as `Model.chat_prompt`."""
        turn = {"role": "user", "content": [{"type": "audio", "audio": sound}]}
        prompt, media = self._model.read_prompt([*self._messages, turn], self._chat)
        self._messages = with_sources(self._messages, media[:-1])
        return replace(prompt, salt=self._salt)


def open_listener(
    model: Model, messages: Sequence[Mapping[str, Any]], chat: ChatOptions, *, spoken: bool, judged: bool, salt: bytes
) -> Listener:
    """As `Model.listen`."""
    if model.media is None:
        raise InvalidRequest(f"a {model.config.model_type} model takes text only; audio needs an Omni model")
    if spoken:
        model.speech_stack()  # says what is missing where there is none

    def request(prompt: PromptRows) -> Request:
        return model.request(prompt, SamplingParams(), prefill_only=True, captures=spoken, priority=AHEAD)

    def first_token(prompt: PromptRows) -> Request:
        return model.request(prompt, FIRST_TOKEN, captures=spoken, priority=AHEAD)

    prompt = TurnPrompt(model, list(messages), chat, salt)
    return Listener(model.engine, model.media, prompt, request, first_token if judged else None)
