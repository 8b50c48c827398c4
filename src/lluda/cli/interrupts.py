"""Ctrl-C, SIGTERM and SIGHUP: as exceptions, so that unfinished files are removed, or as the system handles them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


class Terminated(BaseException):
    """The signal ``number`` asked the process to end. A BaseException like KeyboardInterrupt, but another class: in a
    chat Ctrl-C only stops the answer."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number
        """What shells give for a process that the signal killed."""


_TERMINATING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


def _terminate(number: int, _: FrameType | None) -> NoReturn:
    raise Terminated(number)


@contextmanager
def terminating_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise `Terminated`, unless they are ignored (nohup) or handled already."""
    taken = [] if _in_thread() else [n for n in _TERMINATING if signal.getsignal(n) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, _terminate)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def plain_signals() -> Iterator[None]:
    """Ctrl-C and the other signals end the process at once. For heavy imports: an exception in the midst of one leaves
    libraries half loaded, which then raise errors of their own. No unfinished work may be open inside."""
    ours = (signal.default_int_handler, _terminate)
    found = {} if _in_thread() else {n: signal.getsignal(n) for n in (signal.SIGINT, *_TERMINATING)}
    taken = {number: handler for number, handler in found.items() if handler in ours}
    for number in taken:
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)


def _in_thread() -> bool:
    """Only the main thread may set handlers."""
    return threading.current_thread() is not threading.main_thread()
