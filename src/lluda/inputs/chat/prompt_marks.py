"""Marks that separate a template's control tokens from a user's text in one rendered prompt.

A user may type ``<|im_end|>``. Before rendering, the spellings of added tokens inside the messages are escaped by a
noncharacter of Unicode that occurs nowhere in them; afterwards the rendered text is split at the spellings that are
not escaped, which the template wrote, and the texts between are encoded as plain text without the marks. What a
template itself assembles around a value, as in ``'<|' + name + '|>'``, counts as the template's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from lluda.errors import CorruptFile, InvalidRequest
from lluda.inputs.chat.chat_template import ChatTemplate
from lluda.inputs.text.tokenizer import Tokenizer

_MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]

_CONTROL = re.compile(r"<\|[\w.\-/]{1,64}\|>|<｜[^｜<>\s]{1,64}｜>")
"""How control tokens are spelled: ``<|im_start|>``, ``<｜end▁of▁sentence｜>``."""

_ROLE_WORDS = ("system", "user", "assistant", "tool", "function", "developer", "model", "human", "bot", "observation")
_PLAIN_MARKERS = frozenset(f"<|{word}|>" for word in _ROLE_WORDS)
"""What released models (Zephyr, Tulu, OLMo) write before a turn as ordinary text, without a token for it."""


class PromptMarks:
    """Marks spellings of added tokens in the ``values`` of a request and takes the marks out again."""

    def __init__(self, tokenizer: Tokenizer, values: Mapping[str, Any], template: ChatTemplate) -> None:
        """The mark occurs neither in ``values`` nor in the ``template``, so only marks set here are taken out."""
        self._tokenizer, self._template = tokenizer, template
        text = f"{json.dumps(values, ensure_ascii=False)}{template.source}{template.tool_source}".lower()
        # A template may write JSON in ASCII, so the mark's escape must be as unmistakable as the mark.
        self._free = [mark for mark in _MARKS if mark not in text and f"u{ord(mark):04x}" not in text]
        # A name that the checkpoint has for a token it does not number is as unknown as any control token.
        named = [name for name in template.special_tokens.values() if tokenizer.id_of(name) is None and len(name) > 1]
        self._control = re.compile("|".join((_CONTROL.pattern, *map(re.escape, named))))
        self._mark = self.another()
        self._escape = f"\\u{ord(self._mark):04x}"

    def another(self) -> str:
        """A mark that is nowhere yet. InvalidRequest: there is none left."""
        if not self._free:
            raise InvalidRequest("messages and template hold all 32 noncharacters U+FDD0 to U+FDEF; take one out")
        return self._free.pop(0)

    def escape(self, value: Any, *, special_only: bool = False) -> Any:
        """``value`` with the spellings in all its texts escaped, at any depth, keys included."""
        if isinstance(value, str):
            escaped = self._tokenizer.added_tokens.escape(value, self._mark, special_only=special_only)
            known = self._tokenizer.added_tokens.by_text
            return self._control.sub(lambda found: found[0] if found[0] in known else self._broken(found[0]), escaped)
        if isinstance(value, dict):
            return {
                self.escape(key, special_only=special_only): self.escape(item, special_only=special_only)
                for key, item in value.items()
            }
        if isinstance(value, list):
            return [self.escape(item, special_only=special_only) for item in value]
        return value

    def encode(self, rendered: str) -> list[int]:
        """Ids of a rendered text: spellings that are not escaped as tokens, the rest as plain text."""
        ids: list[int] = []
        for piece in self._tokenizer.added_tokens.split(rendered, self._mark):
            if isinstance(piece, int):
                ids.append(piece)
            else:
                self._check_plain(piece)
                text = piece.replace(self._mark, "").replace(self._escape, "")
                ids += self._tokenizer.encode(text, allow_special=False)
        return ids

    def _broken(self, spelling: str) -> str:
        return spelling[0] + self._mark + spelling[1:]

    def _check_plain(self, piece: str) -> None:
        """CorruptFile: the template, not a user, wrote a control token there for which there is none."""
        unknown = next((found for found in self._control.findall(piece) if found not in _PLAIN_MARKERS), None)
        if unknown is not None:
            raise CorruptFile(
                self._template.path,
                f"the chat template writes {unknown}, which {self._tokenizer.path} and the files beside it do not "
                "know as a token, so the model would read it as letters; copy the tokenizer files that belong to the "
                "template (tokenizer.json, or vocab.json with added_tokens.json)",
            )
