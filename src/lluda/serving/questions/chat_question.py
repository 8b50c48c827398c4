"""One question to the model, whichever endpoint it came through."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.engine.speech.speech_params import MAX_FRAMES, SpeechParams
from lluda.serving.http.errors import ApiError, invalid
from lluda.serving.limits import Limits
from lluda.serving.questions.answer_grammar import ANY_OBJECT, AnswerGrammar
from lluda.serving.questions.messages import plain_messages
from lluda.serving.questions.sampling import choices, sampling_params, within
from lluda.serving.questions.schemas import check_schema
from lluda.serving.questions.tool_use import ToolUse, tool_use
from lluda.serving.wire.tools import JsonObjectFormat, JsonSchemaFormat

if TYPE_CHECKING:
    from lluda.serving.answers.spoken_answers import SpokenAnswers
    from lluda.serving.voices import Voices
    from lluda.serving.wire.chat import ChatBody, Effort

FRAMES_A_SECOND = 12.5


@dataclass(frozen=True, slots=True)
class Speech:
    """How the answer is spoken: by which speaker, in which format it is sent."""

    params: SpeechParams
    speaker: str
    format: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatQuestion:
    """``messages`` as `plain_messages` has them. ``thinking``: the template's switch (None: its default). ``shown``:
    the text is sent, not the sound alone. ``logprobs``: alternatives of each token that are reported (None: nothing
    is). ``paths``, ``form_path``: where each message, and the form of the answer, stand in the body."""

    messages: Sequence[Mapping[str, Any]]
    paths: Sequence[str]
    sampling: SamplingParams
    tools: ToolUse = field(default_factory=lambda: ToolUse({}))
    schema: Mapping[str, Any] | None = None
    form_path: str = "response_format"
    thinking: bool | None = None
    choices: int = 1
    logprobs: int | None = None
    shown: bool = True
    speech: Speech | None = None

    @property
    def grammar(self) -> AnswerGrammar:
        """The form that the answer must have. Under one it thinks only if it was asked to."""
        return AnswerGrammar(self.schema, self.tools, thinks=bool(self.thinking))


def chat_question(body: ChatBody, limits: Limits, voices: Voices, spoken: SpokenAnswers) -> ChatQuestion:
    """What a body of /v1/chat/completions asks. ApiError: it contradicts itself, or asks for what is not there."""
    if body.functions is not None or body.function_call is not None:
        param = "functions" if body.functions is not None else "function_call"
        raise invalid(f"{param} is the older form; use tools and tool_choice", param, "unsupported_value")
    if body.stream_options is not None and not body.stream:
        raise invalid("stream_options is for stream: true", "stream_options")
    logprobs = _logprobs(body, limits)
    count = choices(body, limits)
    return ChatQuestion(
        messages=plain_messages(body.messages, spoken, limits),
        paths=[f"messages[{index}]" for index in range(len(body.messages))],
        sampling=sampling_params(body, limits, max_tokens=_max_tokens(body), logprobs=logprobs),
        tools=tool_use(body.tools, body.tool_choice, body.parallel_tool_calls, limits),
        schema=_schema(body, limits),
        thinking=_thinking(body),
        choices=count,
        logprobs=logprobs,
        shown="text" in (body.modalities or ["text"]),
        speech=_speech(body, voices, count),
    )


def thinks(effort: Effort | None) -> bool | None:
    """The template's switch for an effort of reasoning."""
    return None if effort is None else effort not in ("none", "minimal")


def _max_tokens(body: ChatBody) -> int | None:
    newer, older = body.max_completion_tokens, body.max_tokens
    if newer is not None and older is not None and newer != older:
        raise invalid(
            f"max_completion_tokens ({newer}) and max_tokens ({older}) mean the same; give one", "max_completion_tokens"
        )
    return newer if newer is not None else older


def _logprobs(body: ChatBody, limits: Limits) -> int | None:
    if body.top_logprobs is None:
        return 0 if body.logprobs else None
    if not body.logprobs:
        raise invalid("top_logprobs needs logprobs: true", "top_logprobs")
    return within(body.top_logprobs, limits.top_logprobs, "top_logprobs")


def _schema(body: ChatBody, limits: Limits) -> Mapping[str, Any] | None:
    match body.response_format:
        case JsonObjectFormat():
            return ANY_OBJECT
        case JsonSchemaFormat(json_schema=named):
            if named.schema_ is None:
                return ANY_OBJECT
            check_schema(named.schema_, limits, "response_format.json_schema.schema")
            return named.schema_
    return None


def _thinking(body: ChatBody) -> bool | None:
    by_effort = thinks(body.reasoning_effort)
    by_switch = body.chat_template_kwargs.enable_thinking if body.chat_template_kwargs else None
    if by_effort is not None and by_switch is not None and by_effort != by_switch:
        param = "chat_template_kwargs.enable_thinking"
        raise invalid(f"{param} and reasoning_effort contradict each other; give one", param)
    return by_switch if by_switch is not None else by_effort


def _speech(body: ChatBody, voices: Voices, count: int) -> Speech | None:
    if "audio" not in (body.modalities or ()):
        for name in ("audio", "speech_seed", "speech_temperature", "max_audio_seconds"):
            if getattr(body, name) is not None:
                raise invalid(f'{name} needs "audio" among the modalities', name)
        return None
    if body.audio is None:
        raise ApiError(400, "missing_required_parameter", "audio with voice and format is required", param="audio")
    voice = body.audio.voice
    speaker = voices.resolve(voice if isinstance(voice, str) else {"id": voice.id}, "audio.voice")
    if body.stream and body.audio.format != "pcm16":
        raise invalid(
            f"audio.format must be pcm16 in a stream, not {body.audio.format}", "audio.format", "unsupported_value"
        )
    if count != 1:
        raise invalid(f"n must be 1 for a spoken answer, not {count}", "n", "unsupported_value")
    seed = body.speech_seed if body.speech_seed is not None else body.seed
    sampling = SamplingParams(temperature=body.speech_temperature, seed=None if seed is None else seed % 2**64)
    frames = None if body.max_audio_seconds is None else math.ceil(body.max_audio_seconds * FRAMES_A_SECOND)
    params = SpeechParams(sampling=sampling, max_frames=None if frames is None else min(frames, MAX_FRAMES))
    return Speech(params, speaker, body.audio.format)
