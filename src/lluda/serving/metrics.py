"""What /metrics shows. Labels take values of closed sets only, never a client's text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from collections.abc import Callable

OUTCOMES = ("stop", "length", "tool_calls", "cancelled", "error")
"""How a request ends, each exactly once."""

_BUCKETS = tuple(0.001 * 2**power for power in range(18))
"""Seconds: from 1 ms, doubling, to 131 s."""

_ROWS = tuple(float(2**power) for power in range(12))


class Metrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests_running = self._gauge("requests_running", "Sequences that were admitted and have not ended")
        self.requests_waiting = self._gauge("requests_waiting", "Sequences in line")
        self.kv_cache_usage = self._gauge("kv_cache_usage_ratio", "Share of the KV cache counted for what runs")
        self.http_responses = self._counter("http_responses", "Answers by route and status", "route", "status")
        self.requests_received = self._counter("requests_received", "Requests that asked to be admitted", "endpoint")
        self.requests = self._counter("requests", "Ended requests by endpoint and outcome", "endpoint", "outcome")
        self.rejected = self._counter("requests_rejected", "Requests refused before they ran, by code", "code")
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of ended sequences")
        self.cached_prompt_tokens = self._counter("cached_prompt_tokens", "Of these, taken from earlier requests")
        self.generation_tokens = self._counter("generation_tokens", "Generated tokens")
        self.tool_parse_failures = self._counter("tool_parse_failures", "Tool calls that could not be read")
        self.audio_seconds = self._counter("audio_seconds", "Seconds of speech made")
        self.speech_underruns = self._counter("speech_underruns", "Times a listener had to wait for speech")
        self.time_to_first_token = self._histogram("time_to_first_token_seconds", "From admission to the first token")
        self.inter_token_latency = self._histogram("inter_token_latency_seconds", "Between two tokens of a sequence")
        self.request_latency = self._histogram("e2e_request_latency_seconds", "From arrival to the end")
        self.queue_seconds = self._histogram("queue_seconds", "In the server's line")
        self.engine_queue_seconds = self._histogram("engine_queue_seconds", "Then until the engine had memory for it")
        self.time_to_first_audio = self._histogram("time_to_first_audio_seconds", "From admission to the first sound")
        self.real_time_factor = self._histogram("real_time_factor", "Seconds that a second of speech took")
        self.realtime_sessions = self._gauge("realtime_sessions", "Open realtime sessions")
        self.vad_turns = self._counter("vad_turns", "Turns of users that were found in their sound")
        self.barge_ins = self._counter("barge_ins", "Answers that the user broke off by speaking")
        self.barge_in_stop = self._histogram("barge_in_stop_seconds", "From the start of speech to the answer's end")
        self.first_sound = self._histogram("first_sound_seconds", "From the end of a user's turn to the answer's sound")
        self.step_seconds = self._histogram("step_seconds", "Steps of the engine by kind", "kind")
        self.batch_rows = Histogram(
            "lluda_batch_rows", "Rows of a step by kind", ("kind",), buckets=_ROWS, registry=self.registry
        )

    def render(self) -> bytes:
        """As Prometheus reads it."""
        return generate_latest(self.registry)

    def watch(self, gauge: Gauge, value: Callable[[], float]) -> None:
        """``gauge`` is asked for when it is read."""
        gauge.set_function(value)

    def _gauge(self, name: str, meaning: str) -> Gauge:
        return Gauge(f"lluda_{name}", meaning, registry=self.registry)

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(f"lluda_{name}", meaning, labels, registry=self.registry)

    def _histogram(self, name: str, meaning: str, *labels: str) -> Histogram:
        return Histogram(f"lluda_{name}", meaning, labels, buckets=_BUCKETS, registry=self.registry)
