"""The byte-level alphabet of GPT-2 (Radford et al. 2019): every byte as a printable character."""

from __future__ import annotations


def _alphabet() -> dict[str, int]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in set(printable)]
    characters = {chr(byte): byte for byte in printable}
    return characters | {chr(0x100 + index): byte for index, byte in enumerate(moved)}


_BYTE_OF = _alphabet()


def token_bytes(token: str) -> bytes:
    """The bytes a vocabulary entry stands for; one that uses other characters stands for its own UTF-8."""
    try:
        return bytes(_BYTE_OF[character] for character in token)
    except KeyError:
        return token.encode()


def is_byte_level(token: str) -> bool:
    """Whether every character belongs to the alphabet."""
    return all(character in _BYTE_OF for character in token)
