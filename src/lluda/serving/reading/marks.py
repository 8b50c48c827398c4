"""The tokens that set thoughts and tool calls apart from content, and the text between them."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol


class Mark(Enum):
    """A token that opens or closes something, by its spelling in Qwen's vocabularies."""

    THINK = "<think>"
    THINK_END = "</think>"
    CALL = "<tool_call>"
    CALL_END = "</tool_call>"


class Vocabulary(Protocol):
    """What is asked of a tokenizer."""

    def id_of(self, token: str) -> int | None:
        """The id of an added token."""

    def bytes_of(self, number: int, skip_special: bool = True) -> bytes:
        """The bytes of a token."""


@dataclass(frozen=True, slots=True)
class Marks:
    """The ids of the marks that a vocabulary has. They count by id alone: a text that spells one is text."""

    by_id: dict[int, Mark]

    @classmethod
    def find(cls, vocabulary: Vocabulary) -> Marks:
        """The marks of a tokenizer. Thoughts and calls are set apart where it has both marks of them."""
        found: dict[int, Mark] = {}
        for pair in ((Mark.THINK, Mark.THINK_END), (Mark.CALL, Mark.CALL_END)):
            ids = [vocabulary.id_of(mark.value) for mark in pair]
            if None not in ids:
                found |= {number: mark for number, mark in zip(ids, pair, strict=True) if number is not None}
        return cls(found)

    def id_of(self, mark: Mark) -> int | None:
        """The mark's id; None: the vocabulary has none."""
        return next((number for number, one in self.by_id.items() if one is mark), None)

    def thought_is_open(self, prompt: Sequence[int], turn_start: int | None) -> bool:
        """Whether an answer to ``prompt`` begins inside a thought that the template opened: after the last
        ``turn_start`` there is a mark that opens one, and none that closes it."""
        for number in reversed(prompt):
            mark = self.by_id.get(number)
            if mark in (Mark.THINK, Mark.THINK_END):
                return mark is Mark.THINK
            if number == turn_start:
                return False
        return False


class MarkedText:
    """Cuts the text of an answer at its marks.

    The engine gives out text later than tokens: it holds back unfinished characters, and what may begin a stop string.
    So each mark's place is counted in characters when its token comes, and the text is cut there when it has come that
    far.
    """

    def __init__(self, marks: Marks, vocabulary: Vocabulary) -> None:
        self._marks, self._vocabulary = marks, vocabulary
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._placed: deque[tuple[Mark, int, int]] = deque()  # with the characters at which its spelling begins, ends
        self._decoded = 0  # characters of the tokens so far
        self._cut = 0  # characters that were given out
        self._text = ""  # what follows them, as far as it has come

    def push(self, token: int, text: str, *, ends: bool = False) -> Iterator[str | Mark]:
        """A token, and the text that came with it: texts and marks as far as they are complete. ``ends``: the token
        ended the answer, and has no text of its own."""
        self._text += text
        spelling = b"" if ends else self._vocabulary.bytes_of(token)
        self._decoded += len(self._decoder.decode(spelling))
        mark = self._marks.by_id.get(token)
        if mark is not None:
            end = self._cut + len(self._text) if ends else self._decoded
            self._placed.append((mark, end - len(spelling), end))
        while self._placed:
            mark, start, end = self._placed[0]
            yield from self._taken(start)
            if self._cut + len(self._text) < end:
                return
            self._placed.popleft()
            self._text, self._cut = self._text[end - self._cut :], end
            yield mark
        yield from self._taken(self._cut + len(self._text))

    def _taken(self, until: int) -> Iterator[str]:
        """The text before character ``until``, if there is any."""
        before, self._text = self._text[: max(0, until - self._cut)], self._text[max(0, until - self._cut) :]
        self._cut += len(before)
        if before:
            yield before
