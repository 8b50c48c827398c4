"""A tool call as the model writes it, ``{"name": …, "arguments": {…}}``, read while it comes."""

from __future__ import annotations

import json
from enum import Enum, auto

_SPACE = " \t\r\n"


class _At(Enum):
    """What comes next on the level of the call's own keys."""

    OPENING = auto()
    KEY = auto()
    COLON = auto()
    VALUE = auto()
    COMMA = auto()
    NOTHING = auto()


class ToolCallText:
    """`push` the text between the marks of a call. ``name`` is known as soon as it is complete; ``arguments`` is the
    raw text of its object as far as it came; ``failed`` says that no call can become of it.

    Finds where keys and values begin and end; `finish` checks them as JSON.
    """

    def __init__(self) -> None:
        self.raw = ""
        self.name: str | None = None
        self.failed = False
        self._at = _At.OPENING
        self._place = 0
        self._depth = 0  # of brackets inside the value
        self._in_string = self._escaped = False
        self._start = 0  # of the key or value
        self._key: str | None = None
        self._arguments: tuple[int, int | None] | None = None  # where they begin and end

    @property
    def arguments(self) -> str:
        """The raw text of the arguments so far; empty before they begin."""
        if self._arguments is None:
            return ""
        start, end = self._arguments
        return self.raw[start : self._place if end is None else end]

    def push(self, text: str) -> None:
        """More of the text."""
        self.raw += text
        while self._place < len(self.raw) and not self.failed:
            self._take(self.raw[self._place])
            self._place += 1

    def finish(self) -> str | None:
        """The text is complete. The raw arguments (``{}`` where there are none); None: it is no call."""
        try:
            call = json.loads(self.raw)
        except (ValueError, RecursionError):
            return None
        if self.failed or self._at is not _At.NOTHING or not isinstance(call, dict) or self.name is None:
            return None
        if not isinstance(call.get("arguments", {}), dict):
            return None
        return self.arguments or "{}"

    def _take(self, letter: str) -> None:
        if self._in_string:
            self._in_text(letter)
        elif self._at is _At.VALUE and (self._depth or self._start >= 0):
            self._in_value(letter)
        elif letter not in _SPACE:
            self._between(letter)

    def _in_text(self, letter: str) -> None:
        if self._escaped:
            self._escaped = False
        elif letter == "\\":
            self._escaped = True
        elif letter == '"':
            self._in_string = False
            if self._at is _At.KEY:
                self._key = self._read(self._place + 1)
                self._at = _At.COLON
            elif not self._depth:
                self._value_ends(self._place + 1)

    def _in_value(self, letter: str) -> None:
        if letter == '"':
            self._in_string = True
        elif letter in "{[":
            self._depth += 1
        elif letter in "}]":
            if not self._depth:
                self._value_ends(self._place)  # a number or a word, ended by the end of the call
                self._between(letter)
                return
            self._depth -= 1
            if not self._depth:
                self._value_ends(self._place + 1)
        elif letter == "," and not self._depth:
            self._value_ends(self._place)
            self._between(letter)

    def _between(self, letter: str) -> None:
        match self._at, letter:
            case _At.OPENING, "{":
                self._at = _At.KEY
            case _At.KEY, '"':
                self._start, self._in_string = self._place, True
            case _At.COLON, ":":
                self._at, self._start = _At.VALUE, -1
            case _At.VALUE, _:
                self._value_begins(letter)
            case _At.COMMA, ",":
                self._at = _At.KEY
            case ((_At.COMMA | _At.KEY), "}"):
                self._at = _At.NOTHING
            case _:
                self.failed = True

    def _value_begins(self, letter: str) -> None:
        self._start = self._place
        if self._key == "arguments":
            self.failed = letter != "{" or self._arguments is not None
            self._arguments = (self._place, None)
        elif self._key == "name":
            self.failed = letter != '"' or self.name is not None
        self._in_value(letter)

    def _value_ends(self, end: int) -> None:
        self._at = _At.COMMA
        if self._key == "name":
            self.name = self._read(end)
        elif self._key == "arguments":
            self._arguments = (self._start, end)

    def _read(self, end: int) -> str | None:
        """The text in quotes that ends there."""
        try:
            found = json.loads(self.raw[self._start : end])
        except ValueError:
            found = None
        self.failed = self.failed or not isinstance(found, str)
        return found if isinstance(found, str) else None
