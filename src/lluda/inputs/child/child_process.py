"""ChildProcess: a script of lluda's on the other end of a socket, for work that must be bounded and may crash."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from typing import Any

from lluda.inputs.child import child_messages

_ENDED = "its process ended without an answer (it overran a limit, or crashed)"
_LAST_WORDS = 2**16


class ChildFailed(Exception):
    """A child process gave no answer and was ended; ``signal`` is the number of the signal that ended it, if one did.
    The text says what happened, as the end of a sentence. The caller turns it into a `LludaError`."""

    def __init__(self, text: str, ended_by: int | None = None) -> None:
        super().__init__(text)
        self.signal = ended_by


class ChildProcess:
    """One child process. It is killed, and never used again, after anything but a proper answer.

    It has a session of its own, which keeps the terminal's Ctrl-C from it, and ends with the object, the interpreter,
    `close`, or, since its socket closes then, when this process is killed. What it and its libraries write to stderr
    is read by `last_stderr_line` alone. Not for several threads at once.
    """

    def __init__(self, script: str, **environment: str) -> None:
        """Start ``script``, a file of Python. It runs by its path and with -P: it imports no module from the
        working folder. ChildFailed: the system starts no process."""
        self._owner = os.getpid()
        ours, theirs = socket.socketpair()
        self._words, words = os.pipe()
        try:
            # A full pipe drops output instead of blocking the child.
            for end in (self._words, words):
                os.set_blocking(end, False)
            self._process = subprocess.Popen(
                [sys.executable, "-P", script],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=words,
                start_new_session=True,
                env=os.environ | environment,
            )
        except BaseException as error:
            ours.close()
            os.close(self._words)
            if isinstance(error, OSError):
                raise ChildFailed(f"the system starts no process: {error.strerror or error}") from None
            raise
        finally:
            theirs.close()
            os.close(words)
        self._channel = _TimedChannel(ours)
        self._seconds, self._final_line = 0.0, ""
        self.close = weakref.finalize(self, _end, self._process, ours, self._words, self._owner)

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    @property
    def usable(self) -> bool:
        """Whether it can be asked, by this process: a fork of it must not use the socket."""
        return self.close.alive and self._process.poll() is None and self._owner == os.getpid()

    def allow(self, seconds: float) -> None:
        """How long all that follows may take, until this is called again."""
        self._seconds = seconds
        self._channel.deadline = time.monotonic() + seconds

    def send(self, message: bytes, descriptor: int | None = None) -> None:
        """Send the bytes of a message, and behind it, where one is expected, a file's ``descriptor``. ChildFailed."""
        with self._ending():
            self._channel.sendall(message)
            if descriptor is not None:
                socket.send_fds(self._channel.timed(), [b"\0"], [descriptor])

    def receive(self, max_bytes: int = 2**24) -> dict[str, Any]:
        """Its next message. ChildFailed."""
        with self._ending():
            found = child_messages.receive(self._channel, max_bytes)
            if not isinstance(found, dict):
                raise ValueError("not an object")
            return found

    def receive_payload(self, size: int) -> bytearray:
        """The raw bytes behind a message. ChildFailed."""
        with self._ending():
            return child_messages.receive_payload(self._channel, size)

    def last_stderr_line(self) -> str:
        """The last line that was written to its stderr since this was last asked, printable and without addresses."""
        if not self.close.alive:
            return self._final_line
        written = b""
        with contextlib.suppress(OSError):  # BlockingIOError: nothing more
            while part := os.read(self._words, _LAST_WORDS):
                written = (written + part)[-_LAST_WORDS:]
        lines = [line.strip() for line in written.decode("utf-8", "replace").splitlines() if line.strip()]
        text = re.sub(r" ?(at |@ ?)?0x[0-9a-fA-F]+", "", lines[-1]) if lines else ""
        return "".join(letter if letter.isprintable() else "?" for letter in text)[:200]

    @contextlib.contextmanager
    def _ending(self) -> Iterator[None]:
        """End the process if what is done meanwhile fails, or is interrupted by the user."""
        whole = False
        try:
            yield
            whole = True
        except TimeoutError:
            raise ChildFailed(f"it was stopped after {self._seconds:g} s") from None
        except (EOFError, OSError, ValueError):
            raise ChildFailed(_ENDED, self._ended_by()) from None
        finally:
            if not whole and self.close.alive:
                self._final_line = self.last_stderr_line()
                self.close()

    def _ended_by(self) -> int | None:
        """The signal that ended it. Its socket may have closed a little before it is gone."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(timeout=1.0)
            return -code if code < 0 else None
        return None


class _TimedChannel:
    """A socket all of whose operations share one ``deadline`` (of `time.monotonic`)."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self.deadline = 0.0

    def sendall(self, data: Any, /) -> None:
        """TimeoutError past the deadline, as all others."""
        self.timed().sendall(data)

    def recv(self, size: int, /) -> bytes:
        """At most ``size`` bytes."""
        return self.timed().recv(size)

    def recv_into(self, buffer: Any, size: int, /) -> int:
        """At most ``size`` bytes into ``buffer``."""
        return self.timed().recv_into(buffer, size)

    def timed(self) -> socket.socket:
        """The socket, with what is left of the time."""
        self._channel.settimeout(max(self.deadline - time.monotonic(), 1e-6))
        return self._channel


def _end(process: subprocess.Popen[bytes], channel: socket.socket, words: int, owner: int) -> None:
    channel.close()
    os.close(words)
    if owner == os.getpid():
        process.kill()
        process.wait()
