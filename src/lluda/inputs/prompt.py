"""From a conversation to token ids: the chat template rendered, with what users typed kept text.

A user may type ``<|im_end|>``. Before rendering, every added token spelled inside a message is broken by a
noncharacter that occurs nowhere in the conversation; after rendering, the string is split at the unbroken ones, which
only the template can have written, and each segment between them is encoded as plain text with the marks taken out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lluda.errors import InvalidRequest
from lluda.inputs.chat_template import ChatTemplate
from lluda.inputs.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant", "tool")
_NONCHARACTERS = [chr(code) for code in range(0xFDD0, 0xFDF0)]


def build_chat_prompt(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = True,
    enable_thinking: bool | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> list[int]:
    """Token ids of ``messages`` (``{"role", "content"}``; content a string or a list of text parts).

    ``enable_thinking`` is passed on where given (Qwen3's templates have the switch).

    Raises:
        InvalidRequest: no messages, an unknown role, a content that is no text.
        TemplateError: the template failed.
    """
    checked = [_checked(message, index) for index, message in enumerate(messages)]
    if not checked:
        raise InvalidRequest("messages is empty: give at least one message")
    mark = _unused_noncharacter(checked, tools)
    broken = [_break_tokens(message, tokenizer, mark) for message in checked]
    options: dict[str, Any] = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
    if tools is not None:
        options["tools"] = _break(list(tools), _spellings(tokenizer, special_only=False), mark)
    text = template.render(broken, add_generation_prompt=add_generation_prompt, **options)
    return list(_encode(tokenizer, text, mark))


def _checked(message: Mapping[str, Any], index: int) -> dict[str, Any]:
    """The message with its content as one string."""
    where = f"messages[{index}]"
    if not isinstance(message, Mapping):
        raise InvalidRequest(f"{where} must be a dictionary with role and content, not {type(message).__name__}")
    role = message.get("role")
    if role not in ROLES:
        raise InvalidRequest(f"{where}: role {role!r:.80} is not one of {', '.join(ROLES)}")
    content = message.get("content")
    if isinstance(content, Sequence) and not isinstance(content, str):
        content = "".join(_text_part(part, f"{where}.content[{i}]") for i, part in enumerate(content))
    if not isinstance(content, str):
        raise InvalidRequest(f"{where}: content must be a string, not {type(content).__name__}")
    if any("\ud800" <= character <= "\udfff" for character in content):
        raise InvalidRequest(f"{where}: content is not valid UTF-8: it holds a lone surrogate")
    return {**message, "content": content}


def _text_part(part: Any, where: str) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise InvalidRequest(f"{where}: parts of type {kind!r:.80} are not supported by this model; supported: text")


def _unused_noncharacter(messages: Sequence[Any], tools: Any) -> str:
    said = repr((messages, tools))
    for mark in _NONCHARACTERS:
        # repr escapes noncharacters, so look for the escape.
        if f"\\u{ord(mark):04x}" not in said and mark not in said:
            return mark
    raise InvalidRequest("the messages hold all 32 noncharacters U+FDD0 to U+FDEF; take one out")


def _break_tokens(message: dict[str, Any], tokenizer: Tokenizer, mark: str) -> dict[str, Any]:
    # Models write added tokens that are no control tokens themselves (<think>), and templates look for them.
    pattern = _spellings(tokenizer, special_only=message["role"] == "assistant")
    broken: dict[str, Any] = _break(message, pattern, mark)
    return broken | {"role": message["role"]}


def _spellings(tokenizer: Tokenizer, *, special_only: bool) -> re.Pattern[str] | None:
    found = [token.content for token in tokenizer.added_tokens.values() if token.special or not special_only]
    return re.compile("|".join(re.escape(text) for text in sorted(found, key=len, reverse=True))) if found else None


def _break(value: Any, pattern: re.Pattern[str] | None, mark: str) -> Any:
    """``value`` with the mark inside every token spelling, in strings at any depth."""
    if pattern is None:
        return value
    if isinstance(value, str):
        return pattern.sub(lambda match: match[0][:1] + mark + match[0][1:], value)
    if isinstance(value, Mapping):
        return {key: _break(item, pattern, mark) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_break(item, pattern, mark) for item in value]
    return value


def _encode(tokenizer: Tokenizer, text: str, mark: str) -> Iterator[int]:
    pattern = _spellings(tokenizer, special_only=False)
    start = 0
    for match in pattern.finditer(text) if pattern else ():
        yield from tokenizer.encode(text[start : match.start()].replace(mark, ""), allow_special=False)
        yield tokenizer.added_tokens[match[0]].id
        start = match.end()
    yield from tokenizer.encode(text[start:].replace(mark, ""), allow_special=False)
