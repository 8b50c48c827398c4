"""Log-probabilities of tokens in the forms of chat, responses and completions."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any, Protocol

from lluda.serving.reading.marks import Vocabulary

UNLIKELY = -9999.0
"""OpenAI's value for what has no probability: JSON has no infinity."""


class ScoredToken(Protocol):
    """A token of a prompt or an answer. ``top``: the most likely ids there, the best first."""

    @property
    def id(self) -> int:
        """Its id."""

    @property
    def logprob(self) -> float | None:
        """Its log-probability; None: it has none before it."""

    @property
    def top(self) -> tuple[tuple[int, float], ...]:
        """Ids with their values."""


def chat_logprob(token: ScoredToken, vocabulary: Vocabulary, count: int) -> dict[str, Any]:
    """An entry of ``logprobs.content`` with the ``count`` most likely tokens."""
    assert token.logprob is not None, "it was asked for"
    top = [_entry(number, value, vocabulary) for number, value in token.top[:count]]
    return _entry(token.id, token.logprob, vocabulary) | {"top_logprobs": top}


def without_bytes(entry: dict[str, Any]) -> dict[str, Any]:
    """The entry as the events of a response's stream have it."""
    top = [{"token": one["token"], "logprob": one["logprob"]} for one in entry["top_logprobs"]]
    return {"token": entry["token"], "logprob": entry["logprob"], "top_logprobs": top}


def _entry(number: int, value: float, vocabulary: Vocabulary) -> dict[str, Any]:
    letters = vocabulary.bytes_of(number, skip_special=False)
    return {"token": letters.decode("utf-8", "replace"), "bytes": list(letters), "logprob": max(value, UNLIKELY)}


class CompletionLogprobs:
    """The four lists of a completion's ``logprobs``; `add` tokens in order, `take` what came since.

    Each dictionary of ``top_logprobs`` holds the token's own value, bit by bit, under its own spelling: lm-eval calls a
    token greedy if its value equals the greatest of its dictionary.
    """

    def __init__(self, vocabulary: Vocabulary, count: int) -> None:
        self._vocabulary, self._count = vocabulary, count
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._offset = 0
        self._lists = _empty()

    def add(self, tokens: Sequence[ScoredToken]) -> None:
        """Tokens that follow; the first of a prompt has no value."""
        for token in tokens:
            self._lists["tokens"].append(spelling(token.id, self._vocabulary))
            value = token.logprob
            self._lists["token_logprobs"].append(None if value is None else max(value, UNLIKELY))
            self._lists["top_logprobs"].append(None if value is None else self._top(token, value))
            self._lists["text_offset"].append(self._offset)
            self._offset += len(self._decoder.decode(self._vocabulary.bytes_of(token.id)))

    def take(self) -> dict[str, list[Any]]:
        """What was added since the last time."""
        taken, self._lists = self._lists, _empty()
        return taken

    def _top(self, token: ScoredToken, value: float) -> dict[str, float]:
        found = {spelling(token.id, self._vocabulary): max(value, UNLIKELY)}
        for number, other in token.top[: self._count]:
            if number == token.id:
                continue
            name = spelling(number, self._vocabulary)
            found[f"token_id:{number}" if name in found else name] = max(other, UNLIKELY)
        return found


def spelling(number: int, vocabulary: Vocabulary) -> str:
    """A token's text; ``bytes:\\xe2\\x82`` where its bytes are no text by themselves."""
    letters = vocabulary.bytes_of(number, skip_special=False)
    try:
        return letters.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in letters)


def _empty() -> dict[str, list[Any]]:
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
