"""What the engine tells of its steps and requests, as counters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lluda.engine.observer import EngineObserver

if TYPE_CHECKING:
    from lluda.engine.observer import StepKind
    from lluda.serving.metrics import Metrics


class EngineMetrics(EngineObserver):
    """Writes into `Metrics`; on the engine's thread."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def step(self, kind: StepKind, seconds: float, rows: int) -> None:
        """As `EngineObserver` has it."""
        self._metrics.step_seconds.labels(kind).observe(seconds)
        self._metrics.batch_rows.labels(kind).observe(rows)

    def began(self, queued_seconds: float) -> None:
        """As `EngineObserver` has it."""
        self._metrics.engine_queue_seconds.observe(queued_seconds)

    def first_token(self, seconds: float) -> None:
        """As `EngineObserver` has it."""
        self._metrics.time_to_first_token.observe(seconds)

    def first_audio(self, seconds: float) -> None:
        """As `EngineObserver` has it."""
        self._metrics.time_to_first_audio.observe(seconds)

    def underrun(self) -> None:
        """As `EngineObserver` has it."""
        self._metrics.speech_underruns.inc()
