"""Messages of a chat as the chat template and the media take them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from lluda.serving.answers.spoken_answers import SpokenAnswers
from lluda.serving.http.errors import ApiError, invalid
from lluda.serving.limits import Limits
from lluda.serving.wire.chat_messages import (
    AssistantMessage,
    Message,
    RefusalPart,
    SystemMessage,
    TextPart,
    ToolCall,
    ToolMessage,
    UserMessage,
)


def plain_messages(messages: Sequence[Message], spoken: SpokenAnswers, limits: Limits) -> list[dict[str, Any]]:
    """The messages as dictionaries: ``developer`` is ``system``, an answer that was spoken is what was said.

    ApiError 400: more messages, parts or text than are taken; 404 ``audio_not_found``: a spoken answer that is not
    known any more.
    """
    if len(messages) > limits.messages:
        raise invalid(f"messages has {len(messages)} entries; at most {limits.messages} are taken", "messages")
    plain = [_plain(message, f"messages[{index}]", spoken, limits) for index, message in enumerate(messages)]
    size = sum(len(text.encode("utf-8", "replace")) for text in _texts(plain))
    if size > limits.text_bytes:
        raise invalid(f"the text of messages has {size:,} bytes; at most {limits.text_bytes:,} are taken", "messages")
    return plain


def _plain(message: Message, where: str, spoken: SpokenAnswers, limits: Limits) -> dict[str, Any]:
    content = message.content
    if isinstance(content, list) and len(content) > limits.parts:
        raise invalid(f"{where}.content has {len(content)} parts; at most {limits.parts} are taken", f"{where}.content")
    match message:
        case SystemMessage():
            return {"role": "system", "content": _text(message.content)}
        case ToolMessage():
            return {"role": "tool", "content": _text(message.content), "tool_call_id": message.tool_call_id}
        case UserMessage():
            if isinstance(message.content, str):
                return {"role": "user", "content": message.content}
            return {"role": "user", "content": [part.model_dump(exclude_none=True) for part in message.content]}
        case AssistantMessage():
            return _answer(message, where, spoken)


def _answer(message: AssistantMessage, where: str, spoken: SpokenAnswers) -> dict[str, Any]:
    plain: dict[str, Any] = {"role": "assistant", "content": _said(message, where, spoken)}
    if message.tool_calls:
        plain["tool_calls"] = [_call(call) for call in message.tool_calls]
    thought = message.reasoning_content or message.reasoning
    if thought:
        plain["reasoning_content"] = thought
    return plain


def _said(message: AssistantMessage, where: str, spoken: SpokenAnswers) -> str:
    if message.content is not None:
        return _text(message.content)
    if message.audio is None:
        return message.refusal or ""
    transcript = spoken.transcript(message.audio.id)
    if transcript is None:
        raise ApiError(
            404,
            "audio_not_found",
            f"{where}.audio.id: no spoken answer of the last hour has the id {message.audio.id[:80]!r}; give its text",
            param=f"{where}.audio.id",
        )
    return transcript


def _text(content: str | Sequence[TextPart | RefusalPart]) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.text if isinstance(part, TextPart) else part.refusal for part in content)


def _call(call: ToolCall) -> dict[str, Any]:
    """Templates take arguments as an object; what is none, because it was cut off, goes in as it was written."""
    text = call.function.arguments
    try:
        parsed = json.loads(text or "{}")
    except (ValueError, RecursionError):
        parsed = None
    arguments = parsed if isinstance(parsed, dict) else text
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}


def _texts(messages: Iterable[dict[str, Any]]) -> Iterable[str]:
    for message in messages:
        content = message["content"]
        if isinstance(content, str):
            yield content
        else:
            yield from (part["text"] for part in content if "text" in part)
