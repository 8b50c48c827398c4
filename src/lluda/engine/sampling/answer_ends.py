"""Which tokens end an answer: every one that the checkpoint names as an end.

A fine-tune may name the end of a turn in one place alone, so all are taken together: config.json,
generation_config.json, the tokenizer's files (``eos_token``; GGUF's eos, eot and eom) and, for a chat, what the
template writes after an assistant's turn. A plain continuation knows no turns, and goes on past what only the template
names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lluda.inputs.chat.chat_template import ChatTemplate
from lluda.inputs.chat.turn_end import turn_end
from lluda.inputs.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class AnswerEnds:
    """``text``: ids that end any answer; ``turn``: those and the template's, which end one in a chat."""

    text: tuple[int, ...]
    turn: tuple[int, ...]

    @classmethod
    def find(cls, config_ids: Sequence[int], tokenizer: Tokenizer, template: ChatTemplate | None) -> AnswerEnds:
        """``config_ids`` are those of config.json and generation_config.json."""
        text = tuple(dict.fromkeys((*config_ids, *tokenizer.end_ids)))
        written = turn_end(tokenizer, template) if template else None
        return cls(text, text if written is None else tuple(dict.fromkeys((*text, written))))

    def describe(self, tokenizer: Tokenizer) -> str:
        """The ends in words."""
        if not self.turn:
            return "no end of an answer known"
        return f"answers end at {', '.join(_spelled(tokenizer, number) for number in self.turn)}"

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should be told."""
        if self.turn:
            return ()
        return (
            "no token is known to end an answer: config.json, generation_config.json, the tokenizer's files and the "
            "chat template name none, so every answer goes on to max_tokens; name one with --stop-id (stop_token_ids)",
        )


def _spelled(tokenizer: Tokenizer, number: int) -> str:
    text = tokenizer.decode([number], skip_special=False)
    return text if text.isprintable() and text.strip() else str(number)
