"""Byte letters: byte-level BPE writes each byte of UTF-8 as one printable letter (Radford et al. 2019, GPT-2).

Printable Latin-1 encodes itself; the other 68 bytes, in order, are U+0100 to U+0143.
"""

from __future__ import annotations


def _byte_of_letter() -> dict[int, int]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = sorted(set(range(256)) - set(printable))
    return {byte: byte for byte in printable} | {0x100 + index: byte for index, byte in enumerate(rest)}


_BYTES = _byte_of_letter()

LETTERS = frozenset(map(chr, _BYTES))
"""The 256 letters."""

EVERYDAY_LETTERS = LETTERS & {*map(chr, range(0x21, 0x7F)), "Ġ", "Ċ"}
"""Those of printable ASCII, the space and the newline, which every vocabulary has."""


def bytes_of_letters(token: str) -> bytes:
    """The bytes that ``token`` spells. ``token`` consists of `LETTERS`."""
    return token.translate(_BYTES).encode("latin-1")
