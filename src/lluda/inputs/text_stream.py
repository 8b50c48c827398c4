"""Tokens to text as they come: never half a character, never a piece of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from lluda.inputs.tokenizer import Tokenizer


class TextStream:
    """``push`` each token id; the returned texts, with ``finish``'s, are the whole answer.

    Bytes of an unfinished character are held back, as is the end of the text while it could be the beginning of a stop
    string. When a stop string appears, ``stopped`` names it, the text before it has been returned, and no more comes.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.stopped: str | None = None

    def push(self, token_id: int) -> str:
        """Text that became safe to show with this token; special tokens have none."""
        if self.stopped is not None or token_id in self._tokenizer.special_ids:
            return ""
        return self._release(self._held + self._utf8.decode(self._tokenizer.bytes_of(token_id)))

    def finish(self) -> str:
        """What was held back; bytes that never became a character are U+FFFD."""
        if self.stopped is not None:
            return ""
        text = self._release(self._held + self._utf8.decode(b"", final=True))
        held, self._held = self._held, ""
        return text if self.stopped is not None else text + held

    def _release(self, text: str) -> str:
        found = [(text.index(stop), -len(stop), stop) for stop in self._stop if stop in text]
        if found:
            position, _, self.stopped = min(found)
            self._held = ""
            return text[:position]
        keep = self._possible_start(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _possible_start(self, text: str) -> int:
        """Length of the longest end of ``text`` that begins a stop string."""
        longest = max((len(stop) - 1 for stop in self._stop), default=0)
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0
