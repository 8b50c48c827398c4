"""Messages between lluda and its bounded child processes: both ends of one socket.

A message is a 4-byte big-endian length and that many bytes of JSON; where its ``payload`` is a number, as many raw
bytes follow. Standard library alone: a child loads this file before it loads anything of lluda.
"""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Mapping
from typing import Any, Protocol

_PIECE = 2**20
"""Bytes sent or received at once."""


class Channel(Protocol):
    """The operations of a socket that messages need."""

    def sendall(self, data: Any, /) -> None:
        """Send all of ``data``."""

    def recv(self, size: int, /) -> bytes:
        """At most ``size`` bytes; none when the other end closed."""
        ...

    def recv_into(self, buffer: Any, size: int, /) -> int:
        """At most ``size`` bytes into ``buffer``; how many they were, none when the other end closed."""
        ...


def framed(message: Mapping[str, Any]) -> bytes:
    """The bytes of one message. TypeError or ValueError: not JSON values."""
    body = json.dumps(message).encode()
    return struct.pack(">I", len(body)) + body


def receive(channel: Channel, max_bytes: int = 2**32) -> Any:
    """The next message, without its payload. EOFError: the other end closed. ValueError: over ``max_bytes``, or not
    JSON."""
    (size,) = struct.unpack(">I", receive_payload(channel, 4))
    if size > max_bytes:
        raise ValueError(f"a message of {size} bytes")
    return json.loads(receive_payload(channel, size))


def receive_payload(channel: Channel, size: int) -> bytearray:
    """``size`` raw bytes. EOFError: the other end closed."""
    data = bytearray(size)
    with memoryview(data) as rest:
        filled = 0
        while filled < size:
            got = channel.recv_into(rest[filled:], min(size - filled, _PIECE))
            if not got:
                raise EOFError
            filled += got
    return data


def limit_resources(**limits: int) -> None:
    """Bound this process by name, as ``AS`` (bytes of address space) or ``CPU`` (seconds); a limit that the system does
    not have is left out. Only what may be used is lowered: a later call may raise it again."""
    import resource

    for name, limit in limits.items():
        with contextlib.suppress(AttributeError, ValueError, OSError):
            kind = getattr(resource, f"RLIMIT_{name}")
            most = resource.getrlimit(kind)[1]
            resource.setrlimit(kind, (limit if most == resource.RLIM_INFINITY else min(limit, most), most))
