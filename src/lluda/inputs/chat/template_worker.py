"""The child process that renders chat templates: a template is downloaded code, so it runs where it can be killed.

Run as a script, with nothing of lluda imported but two files: `template_renderer.py` does the rendering, and
`child/child_messages.py` says how requests and answers go over standard input, which is a socket. The first answer,
``{"ready": true}``, says that the worker is up.
"""

from __future__ import annotations

import contextlib
import importlib.util
import signal
import socket
from pathlib import Path
from typing import Any

MAX_MEMORY = 512 * 2**20


def main() -> None:
    """Answer requests until the other end closes."""
    renderer, messages = _module("chat", "template_renderer").Renderer(), _module("child", "child_messages")
    channel = socket.socket(fileno=0)
    # Bounded memory; no files written, no processes started, no core dump.
    messages.limit_resources(AS=MAX_MEMORY, FSIZE=0, NPROC=0, CORE=0)
    channel.sendall(messages.framed({"ready": True}))
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            request = messages.receive(channel)
            # Should the parent die and leave a template running, the default action of the alarm ends it.
            signal.setitimer(signal.ITIMER_REAL, request["seconds"] + 1.0)
            channel.sendall(messages.framed(renderer.answer(request)))
            signal.setitimer(signal.ITIMER_REAL, 0)


def _module(folder: str, name: str) -> Any:
    """A module of lluda.inputs by its path, as this file is run."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / folder / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
