"""From a conversation to token ids: the chat template rendered, in which everything that users typed stays text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lluda.errors import InvalidRequest, TemplateError
from lluda.inputs.chat.chat_options import ChatOptions
from lluda.inputs.chat.chat_template import ChatTemplate
from lluda.inputs.chat.prompt_marks import PromptMarks
from lluda.inputs.media.media_parts import KINDS
from lluda.inputs.text.tokenizer import Tokenizer, check_text

ROLES = ("system", "user", "assistant", "tool")
REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
"""Keys of a message for what the assistant thought; of several the first counts, and templates read it as the first, or
as the second, as transformers has it."""


def build_chat_prompt(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Mapping[str, Any]],
    options: ChatOptions | None = None,
    *,
    add_generation_prompt: bool = True,
) -> list[int]:
    """Token ids of a conversation, by default ready for the assistant's answer, or for the rest of its last message
    where ``options`` continue that.

    A message is ``{"role": …, "content": …}``; the role one of `ROLES`, the content a str or a list of parts
    ``{"type": "text", "text": …}``, which are joined, or stay parts beside ``{"type": "audio"}``, ``image`` and
    ``video`` for templates that write placeholders for those (see `media_parts.take_media`). An assistant message with
    ``tool_calls`` or a thought (`REASONING_KEYS`) may have none. Other keys are the template's; keys whose value is
    None are dropped. In what an assistant said, added tokens that are not special (``<think>``) keep their meaning; all
    other spellings of added tokens become ordinary text.

    InvalidRequest: messages or options of another form, or options that the template does not take. CorruptFile: the
    template writes a control token that the tokenizer does not know. TemplateError, LimitExceeded: as
    `ChatTemplate.render`, and LimitExceeded as `Tokenizer.encode`.
    """
    options = options or ChatOptions()
    checked = [_with_thought(message) for message in check_messages(messages)]
    values = _plain({"messages": checked, "tools": options.tools, "documents": options.documents,
                   "variables": options.variables()})  # fmt: skip
    _check_template_takes(template, options)
    marker = PromptMarks(tokenizer, values, template)
    values["messages"] = [marker.escape(one, special_only=one["role"] == "assistant") for one in values["messages"]]
    open_end = _Continuation(marker, template, values["messages"], options.continued_key)
    text = template.render(
        open_end.messages,
        add_generation_prompt=add_generation_prompt and not open_end.is_wanted,
        tools=marker.escape(values["tools"]),
        documents=marker.escape(values["documents"]),
        variables=marker.escape(values["variables"]),
    )
    return marker.encode(open_end.cut(text))


def with_answer(
    messages: Sequence[Mapping[str, Any]], answer: str, continued_key: str | None
) -> list[Mapping[str, Any]]:
    """The messages with the assistant's answer behind them, or in the last one where that was continued."""
    if continued_key is None:
        return [*messages, {"role": "assistant", "content": answer}]
    last = messages[-1]
    before = last[continued_key]
    joined = before + answer if isinstance(before, str) else [*before, {"type": "text", "text": answer}]
    return [*messages[:-1], {**last, continued_key: joined}]


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
    if content is None and role == "assistant" and any(found.get(key) for key in ("tool_calls", *REASONING_KEYS)):
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


def _with_thought(message: dict[str, Any]) -> dict[str, Any]:
    """The message with its thought under the names that templates read."""
    thought = next((message[key] for key in REASONING_KEYS if key in message), None)
    return message if thought is None else {"thinking": thought, **message, "reasoning_content": thought}


def _check_template_takes(template: ChatTemplate, options: ChatOptions) -> None:
    """InvalidRequest: the template would drop something that the request gives."""
    source = template.source_for(bool(options.tools))
    lists = [name for name in ("tools", "documents") if getattr(options, name)]
    # enable_thinking is passed to every model; one without the switch does not think.
    variables = [name for name in options.chat_template_kwargs or () if name != "enable_thinking"]
    for name in (*lists, *variables):
        if name not in source:
            raise InvalidRequest(f"{template.path}: the chat template does not read {name}; leave {name} out")


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    """A copy in JSON's own types. InvalidRequest: it has values of others, or text with half a surrogate pair."""
    try:
        text = json.dumps(value, ensure_ascii=False)
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest("messages or tools hold half a surrogate pair; decode them as UTF-8 first") from None
    except (TypeError, ValueError, RecursionError):
        raise InvalidRequest(
            "messages, tools and variables must be JSON values (text, numbers, lists, objects)"
        ) from None
    plain: dict[str, Any] = json.loads(text)
    return plain


class _Continuation:
    """The last message left open, as transformers does it: a mark is put where it ends, and the rendered text cut
    there. ``key`` names what is continued; nothing is, if None."""

    def __init__(
        self, marker: PromptMarks, template: ChatTemplate, messages: Sequence[dict[str, Any]], key: str | None
    ) -> None:
        self.is_wanted = key is not None
        self.messages = list(messages)
        self._end, self._template = "", template
        if key is not None:
            self._end = marker.another()
            self.messages[-1] = self._opened(messages[-1], key)

    def cut(self, rendered: str) -> str:
        """``rendered`` up to the mark. TemplateError: the template leaves the message out."""
        if not self.is_wanted:
            return rendered
        place = rendered.rfind(self._end)
        if place < 0:
            raise TemplateError(
                f"{self._template.path}: template_error: the chat template leaves the last message out, so it cannot "
                "be continued (continue_final_message)"
            )
        before = rendered[:place]
        # The space that was put after the mark is gone where the template trims.
        return before if rendered.startswith(self._end + " ", place) else before.rstrip()

    def _opened(self, message: dict[str, Any], key: str) -> dict[str, Any]:
        same = [one for one in REASONING_KEYS if key in REASONING_KEYS and message.get(one) == message.get(key)] or [
            key
        ]
        if not any(one in self._template.source for one in same):
            raise InvalidRequest(
                f"{self._template.path}: the chat template does not read {key}, so it cannot be continued"
            )
        return message | {one: self._extended(message.get(one), key) for one in same}

    def _extended(self, value: Any, key: str) -> Any:
        if isinstance(value, str):
            return f"{value}{self._end} "
        texts = [place for place, part in enumerate(value or ()) if isinstance(part, dict) and "text" in part]
        if not texts:
            raise InvalidRequest(
                f"continue_final_message: the last message has no {key} to continue; give it some text"
            )
        last = texts[-1]
        return [*value[:last], value[last] | {"text": f"{value[last]['text']}{self._end} "}, *value[last + 1 :]]
