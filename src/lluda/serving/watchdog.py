"""Notices an engine that broke or hangs, which the engine's own thread cannot."""

from __future__ import annotations

import faulthandler
import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lluda.engine.engine import Engine

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.5


class Watchdog:
    """Calls ``failed`` once, from a thread of its own, when the engine broke or a turn of it takes longer than
    ``step_seconds``; what all threads were doing then is written to stderr."""

    def __init__(self, engine: Engine, step_seconds: float, failed: Callable[[], None]) -> None:
        self._engine, self._step_seconds, self._failed = engine, step_seconds, failed
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="lluda watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._over.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(min(_LOOK_SECONDS, self._step_seconds / 4)):
            trouble = self._trouble()
            if trouble is not None:
                _log.critical("%s; this process ends, so that a supervisor can start another", trouble)
                faulthandler.dump_traceback(all_threads=True)
                self._failed()
                return

    def _trouble(self) -> str | None:
        engine = self._engine
        if engine.error is not None:
            return f"the engine broke: {type(engine.error).__name__}: {engine.error}"
        started = engine.turn_started
        if started is not None and time.monotonic() - started > self._step_seconds:
            return f"a step of the engine takes longer than {self._step_seconds:g} s (limit step_seconds)"
        return None
