"""The token that a chat template writes after what an assistant said."""

from __future__ import annotations

from lluda.errors import LludaError
from lluda.inputs.chat.chat_template import ChatTemplate
from lluda.inputs.text.tokenizer import Tokenizer

_ANSWER = "Certainly"


def turn_end(tokenizer: Tokenizer, template: ChatTemplate) -> int | None:
    """The id of the added token that follows an assistant's words, white space between them aside; None if the
    template writes none there, or does not render a question and its answer."""
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = template.render(messages, add_generation_prompt=False)
    except LludaError:  # reported when a conversation is rendered
        return None
    _, separator, rest = text.rpartition(_ANSWER)
    pieces = (piece for piece in tokenizer.added_tokens.split(rest) if isinstance(piece, int) or piece.strip())
    first = next(pieces, None) if separator else None
    return first if isinstance(first, int) else None
