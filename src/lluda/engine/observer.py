"""Whom the engine tells what it does, for metrics."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal

from lluda.engine.request import Status

StepKind = Literal["prefill", "decode", "frame", "vocoder", "encoder"]
"""What was computed: rows of prompts, one token of each of several answers (and the rows of a prompt beside them), one
frame of each of several speeches, the samples of some, one medium."""

_log = logging.getLogger(__name__)


class EngineObserver:
    """Methods to override; each is called on the engine's thread, between two steps or within one, and must be quick.
    An error that one raises is logged, and changes nothing else. Seconds are since the request was submitted, but for
    those of `step`."""

    def step(self, kind: StepKind, seconds: float, rows: int) -> None:
        """Work of ``kind`` for ``rows`` rows, answers or speeches took so long."""

    def began(self, queued_seconds: float) -> None:
        """A request began to run."""

    def first_token(self, seconds: float) -> None:
        """The first token of an answer."""

    def first_audio(self, seconds: float) -> None:
        """The first samples of a speech."""

    def underrun(self) -> None:
        """Samples came after a listener, who began with the first ones, had played all before."""

    def ended(self, status: Status, error: BaseException | None) -> None:
        """A request ended; ``error`` is why it failed."""


class Reports:
    """Tells an observer, where there is one."""

    def __init__(self) -> None:
        self.observer: EngineObserver | None = None

    def tell(self, call: Callable[[EngineObserver], None]) -> None:
        """``call`` a method of the observer's."""
        if self.observer is None:
            return
        try:
            call(self.observer)
        except Exception:
            _log.exception("the engine's observer failed")

    def step(self, kind: StepKind, seconds: float, rows: int) -> None:
        """As `EngineObserver.step`."""
        if self.observer is not None:
            self.tell(lambda observer: observer.step(kind, seconds, rows))
