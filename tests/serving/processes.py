"""``lluda serve`` in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import httpx2

SECONDS = 120.0
"""Far more than a start takes, on a busy machine too."""


class ServerProcess:
    """``stderr`` so far in `said`; ``url`` once it listens."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process, self.lines = process, []
        self._changed = threading.Condition()
        self._over = False
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self.lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._over = True
            self._changed.notify_all()

    @property
    def said(self) -> str:
        return "".join(self.lines)

    def wait_for(self, text: str) -> str:
        """The first line with ``text``."""

        def found() -> str | None:
            return next((line for line in self.lines if text in line), None)

        with self._changed:
            assert self._changed.wait_for(lambda: found() or self._over, SECONDS) and found(), self.said
            return found() or ""

    @property
    def url(self) -> str:
        match = re.search(r"http://[^ ]+", self.wait_for("listening on"))
        assert match
        return match[0]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def get(self, path: str) -> httpx2.Response:
        return httpx2.get(self.url + path, timeout=SECONDS)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """The exit code, waited for."""
        return self.process.wait(SECONDS)


@contextmanager
def serving(
    *arguments: str, before: str = "", env: Mapping[str, str | None] | None = None, **options: Any
) -> Iterator[ServerProcess]:
    """A process; ``before`` is Python that runs first in it; ``env`` changes the environment (None: not set)."""
    script = f"import sys\nfrom lluda.cli.main import main\n{before}\nsys.exit(main(sys.argv[1:]))"
    changed = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    command = [sys.executable, "-c", script, "serve", "--threads", "1", *arguments]
    process = subprocess.Popen(
        command,
        env={name: value for name, value in changed.items() if value is not None},
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    try:
        yield ServerProcess(process)
    finally:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        process.wait(SECONDS)
