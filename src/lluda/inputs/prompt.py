"""From a conversation to token ids: the chat template rendered, with everything that users typed kept text.

A user may type ``<|im_end|>``. Before rendering, the spellings of added tokens inside the messages are disarmed by a
noncharacter of Unicode that occurs nowhere in them; afterwards the rendered text is split at the spellings that are
still armed, which the template wrote, and the texts between are encoded as plain text without the marks. What a
template itself assembles around a value, as in ``'<|' + name + '|>'``, is the template's word.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lluda.errors import InvalidRequest
from lluda.inputs.chat_template import ChatTemplate
from lluda.inputs.media_parts import KINDS
from lluda.inputs.tokenizer import Tokenizer, check_text

ROLES = ("system", "user", "assistant", "tool")
_MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
_OWN_VARIABLES = ("messages", "tools", "add_generation_prompt", "enable_thinking")


def build_chat_prompt(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = True,
    enable_thinking: bool | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> list[int]:
    """Token ids of a conversation, by default ready for the assistant's answer.

    A message is ``{"role": …, "content": …}``; the role one of `ROLES`, the content a str or a list of parts
    ``{"type": "text", "text": …}``, which are joined, or stay parts beside ``{"type": "audio"}``, ``image`` and
    ``video`` for templates that write placeholders for those (see `media_parts.take_media`). An assistant message with
    ``tool_calls`` may have none. Other keys are the template's; keys whose value is None are dropped.
    ``enable_thinking`` (Qwen3's switch) and ``extra`` become variables of the template, the former only where given. In
    what an assistant said, added tokens that are not special (``<think>``) keep their meaning; all other spellings of
    added tokens become ordinary text.

    InvalidRequest: messages, tools or extra of another form. TemplateError, LimitExceeded: as `ChatTemplate.render`,
    and LimitExceeded as `Tokenizer.encode`.
    """
    checked = check_messages(messages)
    _check_tools_and_extra(tools, extra)
    said = _plain({"messages": checked, "tools": tools, "extra": dict(extra or {})})
    marker = _Marker(tokenizer, said, f"{template.source}{template.tool_source}")
    variables = marker.disarm(said["extra"])
    if enable_thinking is not None:
        variables["enable_thinking"] = enable_thinking
    text = template.render(
        [marker.disarm(message, special_only=message["role"] == "assistant") for message in said["messages"]],
        add_generation_prompt=add_generation_prompt,
        tools=marker.disarm(said["tools"]),
        variables=variables,
    )
    return marker.encode(text)


def check_messages(messages: object) -> list[dict[str, Any]]:
    """The messages, each content one str, or parts where it has media; keys without a value dropped. InvalidRequest as
    `build_chat_prompt`."""
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise InvalidRequest(f"messages must be a list of messages, not {type(messages).__name__}")
    if not messages:
        raise InvalidRequest("messages is empty; give at least one message")
    return [_checked(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _checked(message: object, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InvalidRequest(f"{where} must be a dictionary with role and content, not {type(message).__name__}")
    found = {key: value for key, value in message.items() if value is not None}
    role, content = found.get("role"), found.get("content")
    if role not in ROLES:
        raise InvalidRequest(f"{where}: role must be one of {', '.join(ROLES)}, not {role!r:.60}")
    if content is None and role == "assistant" and found.get("tool_calls"):
        return found
    if isinstance(content, Sequence) and not isinstance(content, str | bytes):
        parts = [_checked_part(part, f"{where}.content[{index}]") for index, part in enumerate(content)]
        if any(part["type"] != "text" for part in parts):
            return found | {"content": parts}
        content = "".join(part["text"] for part in parts)
    check_text(content, f"{where}.content")
    return found | {"content": content}


def _checked_part(part: object, where: str) -> dict[str, str]:
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if kind in KINDS:
        return {"type": kind}
    if kind != "text" or not isinstance(part, Mapping):
        raise InvalidRequest(f"{where}: a part of type {kind!r:.60} is not one of text, {', '.join(KINDS)}")
    check_text(part.get("text"), f"{where}.text")
    return {"type": "text", "text": str(part["text"])}


def _check_tools_and_extra(tools: object, extra: object) -> None:
    if tools is not None and not (
        isinstance(tools, Sequence) and not isinstance(tools, str) and all(isinstance(tool, Mapping) for tool in tools)
    ):
        raise InvalidRequest(f"tools must be a list of JSON objects (function schemas), not {tools!r:.80}")
    if extra is not None and not (isinstance(extra, Mapping) and all(isinstance(name, str) for name in extra)):
        raise InvalidRequest(f"extra must map names of template variables to values, not {extra!r:.80}")
    for name in _OWN_VARIABLES:
        if name in (extra or ()):
            raise InvalidRequest(f"extra must not name {name}; it is an argument of its own")


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    """A copy in JSON's own types. InvalidRequest: it has values of others, or text with half a surrogate pair."""
    try:
        text = json.dumps(value, ensure_ascii=False)
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest("messages or tools hold half a surrogate pair; decode them as UTF-8 first") from None
    except (TypeError, ValueError, RecursionError):
        raise InvalidRequest("messages, tools and extra must be JSON values (text, numbers, lists, objects)") from None
    plain: dict[str, Any] = json.loads(text)
    return plain


class _Marker:
    """Marks spellings of added tokens in what was ``said`` and takes the marks out again."""

    def __init__(self, tokenizer: Tokenizer, said: Mapping[str, Any], template: str) -> None:
        """The mark is none that ``said`` or the ``template`` has, so that all that is taken out was put in here."""
        self._tokenizer = tokenizer
        text = json.dumps(said, ensure_ascii=False) + template
        # A template may write JSON in ASCII, so the mark's escape must be as unmistakable as the mark.
        free = (mark for mark in _MARKS if mark not in text and f"ufdd{ord(mark) - 0xFDD0:x}" not in text.lower())
        found = next(free, None)
        if found is None:
            raise InvalidRequest("messages and template hold all 32 noncharacters U+FDD0 to U+FDEF; take one out")
        self._mark = found
        self._escape = f"\\u{ord(found):04x}"

    def disarm(self, value: Any, *, special_only: bool = False) -> Any:
        """``value`` with the spellings in all its texts disarmed, at any depth, keys included."""
        if isinstance(value, str):
            return self._tokenizer.added_tokens.disarm(value, self._mark, special_only=special_only)
        if isinstance(value, dict):
            return {
                self.disarm(key, special_only=special_only): self.disarm(item, special_only=special_only)
                for key, item in value.items()
            }
        if isinstance(value, list):
            return [self.disarm(item, special_only=special_only) for item in value]
        return value

    def encode(self, rendered: str) -> list[int]:
        """Ids of a rendered text: armed spellings as tokens, the rest as plain text."""
        ids: list[int] = []
        for piece in self._tokenizer.added_tokens.split(rendered, self._mark):
            if isinstance(piece, int):
                ids.append(piece)
            else:
                text = piece.replace(self._mark, "").replace(self._escape, "")
                ids += self._tokenizer.encode(text, allow_special=False)
        return ids
