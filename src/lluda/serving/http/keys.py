"""API keys: which are accepted, held as hashes only."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path

from starlette.datastructures import Headers

from lluda.errors import InvalidRequest

VARIABLE = "LLUDA_API_KEYS"
"""The environment variable with keys, separated by commas or white space."""

_MAX_FILE = 1 << 20
_MAX_KEY = 4096
"""Characters; a longer one is wrong without being hashed."""


class Keys:
    """The accepted keys. None: whoever reaches the server may ask."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._hashes = tuple(_digest(key) for key in keys)

    @classmethod
    def read(cls, file: Path | None, variable: str = "") -> Keys:
        """Of a file (one key a line; lines that begin with # are none) and of `VARIABLE`'s value.

        InvalidRequest: the file cannot be read or holds no key, or a key is no printable ASCII.
        """
        keys = variable.replace(",", " ").split()
        if file is not None:
            found = [line.strip() for line in _text(file).splitlines()]
            found = [line for line in found if line and not line.startswith("#")]
            if not found:
                raise InvalidRequest(f"{file}: holds no key; write one a line")
            keys += found
        for number, key in enumerate(keys):
            if not key.isascii() or not key.isprintable() or " " in key or len(key) > _MAX_KEY:
                raise InvalidRequest(
                    f"API key {number + 1} is not up to {_MAX_KEY} printable ASCII characters without blanks"
                )
        return cls(keys)

    @property
    def are_required(self) -> bool:
        """Whether a request must bring one."""
        return bool(self._hashes)

    def accepts(self, headers: Headers) -> bool:
        """Whether exactly one key was sent, as ``authorization: Bearer KEY``, ``api-key`` or ``x-api-key``, and it is
        right. The comparison takes as long for a wrong key as for a right one."""
        if not self._hashes:
            return True
        sent = _sent(headers)
        if len(set(sent)) != 1 or len(headers.getlist("authorization")) > 1:
            return False
        return self.knows(sent[0])

    def knows(self, key: str) -> bool:
        """Whether ``key`` is one of them; as `accepts`."""
        if len(key) > _MAX_KEY:
            return False
        digest = _digest(key)
        return sum(hmac.compare_digest(digest, known) for known in self._hashes) > 0

    def salt(self, headers: Headers) -> bytes:
        """What tells the prompts of one key from those of another, of headers that were accepted; empty, where no key
        was needed."""
        sent = _sent(headers)
        return _digest(sent[0]) if self._hashes and sent else b""


def _sent(headers: Headers) -> list[str]:
    """Keys, as often as they were sent."""
    sent = [value for name in ("api-key", "x-api-key") for value in headers.getlist(name)]
    for value in headers.getlist("authorization"):
        scheme, _, key = value.partition(" ")
        sent.append(key.strip() if scheme.lower() == "bearer" else "")
    return sent


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _text(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            data = opened.read(_MAX_FILE + 1)
        if len(data) > _MAX_FILE:
            raise InvalidRequest(f"{file}: more than {_MAX_FILE:,} bytes, which is no file of keys")
        return data.decode("ascii")
    except OSError as error:
        raise InvalidRequest(f"{file}: the API keys cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidRequest(f"{file}: an API key is not ASCII") from None
