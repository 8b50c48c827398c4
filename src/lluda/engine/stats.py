"""Counters of an engine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Requests since the start and now: ``submitted`` ones are done, cancelled, failed, waiting or running.
    ``kv_positions``: counted for what runs, of ``kv_budget``; ``cached_positions``: of retained prefixes; ``kv_bytes``:
    allocated for both."""

    submitted: int
    done: int
    cancelled: int
    failed: int
    waiting: int
    running: int
    steps: int
    kv_positions: int
    kv_budget: int
    cached_positions: int
    kv_bytes: int
    reused_tokens: int
