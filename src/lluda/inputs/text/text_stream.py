"""TextStream: incremental detokenization, without partial characters or partial stop strings."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from lluda.errors import InvalidRequest
from lluda.inputs.text.tokenizer import Tokenizer


class TextStream:
    """``push`` each token id; the texts returned, with ``finish``'s last, are the decoded whole up to the stop string.

    Pending are the bytes of an unfinished character, and the end of the text while it may begin a stop string. The
    stop string that is completed first ends the text (of several at once the longest): the text before it has been
    returned, ``stopped`` names it, and no more comes. The cost of a token does not grow with the text.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        """InvalidRequest: a stop string that is empty or no str."""
        if isinstance(stop, str) or not all(isinstance(text, str) and text for text in stop):
            raise InvalidRequest(f"stop must be a list of non-empty strings, not {stop!r:.80}")
        self.stopped: str | None = None
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._searches = [_Search(text) for text in sorted(stop, key=len, reverse=True)]
        self._pending = ""

    def push(self, token_id: int) -> str:
        """The text that became safe to show with this token; special tokens have none."""
        return self._release(self._decoder.decode(self._tokenizer.bytes_of(token_id)))

    def finish(self) -> str:
        """The pending text; bytes that never became a character are U+FFFD, as `Tokenizer.decode` has them."""
        text = self._release(self._decoder.decode(b"", final=True))
        text, self._pending = text + self._pending, ""
        return text

    def _release(self, new: str) -> str:
        if self.stopped is not None:
            return ""
        text, self._pending = self._pending + new, ""
        for count, character in enumerate(new, len(text) - len(new) + 1):
            for search in self._searches:
                if search.advance(character):
                    self.stopped = search.text
                    return text[: count - len(search.text)]
        keep = max((search.matched for search in self._searches), default=0)
        self._pending = text[len(text) - keep :]
        return text[: len(text) - keep]


class _Search:
    """One string sought character by character (Knuth, Morris and Pratt 1977)."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.matched = 0
        """How long a beginning of ``text`` the characters so far end with."""
        self._shorter = [0, 0]  # by length of a beginning: the next shorter beginning it ends with
        for character in text[1:]:
            length = self._shorter[-1]
            while length and text[length] != character:
                length = self._shorter[length]
            self._shorter.append(length + (text[length] == character))

    def advance(self, character: str) -> bool:
        """Take the next character; whether it completes the string."""
        while self.matched and self.text[self.matched] != character:
            self.matched = self._shorter[self.matched]
        self.matched += self.text[self.matched] == character
        return self.matched == len(self.text)
