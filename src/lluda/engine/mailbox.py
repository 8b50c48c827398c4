"""What other threads leave for the engine's."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from lluda.engine.job import Job
from lluda.engine.observer import StepKind


@dataclass(slots=True, eq=False)
class Call:
    """Work of another thread that runs between two steps. ``kind``: as what its time is told to an observer."""

    work: Callable[[], object]
    kind: StepKind | None = None
    result: Future[object] = field(default_factory=Future)

    def run(self) -> None:
        """Do it, unless nobody waits for it any more; its error is the caller's."""
        if not self.result.set_running_or_notify_cancel():
            return
        try:
            self.result.set_result(self.work())
        except BaseException as error:
            self.result.set_exception(error)


class Mailbox:
    """Jobs and calls that were left, and whether there will be more. It outlives the engine, so that the thread can
    wait here without keeping the engine in memory."""

    def __init__(self) -> None:
        self.submitted: deque[Job] = deque()
        self.calls: deque[Call] = deque()
        self.closed = False
        self._changed = threading.Condition()
        self._awake = False

    def wake(self) -> None:
        """Something happened."""
        with self._changed:
            self._awake = True
            self._changed.notify_all()

    def wait(self, timeout: float | None) -> None:
        """Until something happens, or so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._awake, timeout)
            self._awake = False

    def close(self) -> None:
        """No one will come any more."""
        self.closed = True
        self.wake()
