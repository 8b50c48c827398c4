"""The child process that renders chat templates: a template is code from a download, so it runs where it can be killed.

Run as a script, with nothing of lluda imported; `template_renderer.py` beside it does the rendering. Standard input is
a socket; requests and answers go over it as a 4-byte big-endian length and that many bytes of JSON. The first answer,
``{"ready": true}``, says that the worker is up.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import signal
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

MAX_MEMORY = 512 * 2**20


def main() -> None:
    """Answer requests until the other end closes."""
    renderer = _renderer()
    channel = socket.socket(fileno=0)
    _limit_resources()
    channel.sendall(framed({"ready": True}))
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            request = receive(channel)
            # Should the parent die and leave a template running, the default action of the alarm ends it.
            signal.setitimer(signal.ITIMER_REAL, request["seconds"] + 1.0)
            channel.sendall(framed(renderer.answer(request)))
            signal.setitimer(signal.ITIMER_REAL, 0)


def _renderer() -> Any:
    """By its path, as this file is run; and here alone: the parent, who needs only the messages, loads no jinja2."""
    spec = importlib.util.spec_from_file_location("renderer", Path(__file__).with_name("template_renderer.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Renderer()


class Channel(Protocol):
    """The two operations of a socket that messages need."""

    def sendall(self, data: bytes, /) -> None:
        """Send all of ``data``."""

    def recv(self, size: int, /) -> bytes:
        """At most ``size`` bytes; none when the other end closed."""
        ...


def framed(message: Mapping[str, Any]) -> bytes:
    """The bytes of one message. TypeError or ValueError: not JSON values."""
    body = json.dumps(message).encode()
    return struct.pack(">I", len(body)) + body


def receive(channel: Channel, max_bytes: int = 2**32) -> Any:
    """The next message. EOFError: the other end closed. ValueError: over ``max_bytes``, or not JSON."""
    (size,) = struct.unpack(">I", _read(channel, 4))
    if size > max_bytes:
        raise ValueError(f"a message of {size} bytes")
    return json.loads(_read(channel, size))


def _read(channel: Channel, size: int) -> bytes:
    parts = []
    while size:
        part = channel.recv(min(size, 2**20))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _limit_resources() -> None:
    """Bounded memory; no files written, no processes started, no core dump."""
    import resource

    limits = {"RLIMIT_AS": MAX_MEMORY, "RLIMIT_FSIZE": 0, "RLIMIT_NPROC": 0, "RLIMIT_CORE": 0}
    for name, limit in limits.items():
        with contextlib.suppress(AttributeError, ValueError, OSError):  # not every system has every limit
            resource.setrlimit(getattr(resource, name), (limit, limit))


if __name__ == "__main__":
    main()
