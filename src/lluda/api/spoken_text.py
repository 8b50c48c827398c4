"""A text that is spoken word for word, as a request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lluda.engine.prompt_rows import PromptRows
from lluda.engine.request import Request, SpokenAnswer
from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.engine.speech.speech import SpeechStack
from lluda.engine.speech.speech_params import SpeechParams
from lluda.errors import InvalidRequest
from lluda.inputs.text.speaking_parts import speaking_parts
from lluda.inputs.text.tokenizer import Tokenizer


def spoken_text(
    text: str,
    params: SpeechParams | None,
    speaker: str | None,
    *,
    tokenizer: Tokenizer,
    stack: SpeechStack,
    generation_config: Mapping[str, Any],
    **options: Any,
) -> Request:
    """The request for ``text`` as it stands, in a turn of the assistant's that nobody asked for.

    A long text is spoken in parts (`speaking_parts.py`), each a speech of its own for the talker, so any length takes
    the same memory. ``max_frames``, where given, is of all parts together. ``options`` are fields of the Request.

    InvalidRequest: an unknown speaker, or no text.
    """
    chosen = params or SpeechParams()
    if not text:
        raise InvalidRequest("there is no text to speak: give at least one character")
    stack.prompts.speaker_id(speaker)
    tokens = stack.prompts.tokens
    header = [tokens.im_start, tokens.assistant, *tokenizer.encode("\n", allow_special=False)]
    spoken = SpokenAnswer(chosen.with_defaults(generation_config), speaker, total_frames=chosen.max_frames)
    parts = [tokenizer.encode(part, allow_special=False) for part in speaking_parts(text)]
    return Request(
        prompt=PromptRows(header),
        sampling=SamplingParams(),
        speech=spoken,
        text=[[(number, tokenizer.decode([number])) for number in part] for part in parts],
        **options,
    )
