"""Text input of a command: an argument or stdin."""

from __future__ import annotations

import sys

from lluda.errors import InvalidRequest

MARK = "\ufeff"
"""The byte order mark, which some programs put before a text; it is dropped."""


def read_text_argument(text: str, what: str = "the prompt", *, raw: bool = False) -> str:
    """The argument itself, or for ``-`` stdin, without a byte order mark and without the end of its last
    line, which shells add; ``raw`` takes it as it is.

    InvalidRequest: bytes that are not UTF-8, or nothing at all.
    """
    if text == "-":
        text = _stdin(what)
        if not raw:
            text = text.removeprefix(MARK).removesuffix("\n").removesuffix("\r")
    require_text(text, what)
    if not text:
        raise InvalidRequest(f"{what} is empty: give at least one character")
    return text


def require_text(text: str, what: str) -> None:
    """InvalidRequest if an argument or a line held bytes that are not UTF-8 (Python hands them on as surrogates)."""
    for index, character in enumerate(text):
        if "\ud800" <= character <= "\udfff":
            raise InvalidRequest(f"{what} is not valid UTF-8: a bad byte at character {index}; encode it as UTF-8")


def _stdin(what: str) -> str:
    if sys.stdin is None:
        raise InvalidRequest(f"{what} is to be read from stdin, which is closed; give it as an argument")
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{what} on stdin is not UTF-8: bad byte at offset {error.start}") from None
