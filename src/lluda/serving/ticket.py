"""One admitted request: what it submitted, who may interrupt it, and how it ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from lluda.engine.request import Completion, SpeechChunk, SpeechCompletion, SpeechEvent, Token
from lluda.engine.request import Request as EngineRequest

if TYPE_CHECKING:
    from lluda.engine.engine import Engine
    from lluda.engine.stream import Stream
    from lluda.serving.metrics import Metrics

Outcome = Literal["stop", "length", "tool_calls", "cancelled", "error"]


class Ticket:
    """Leave to use the engine. The endpoint sets ``outcome`` when it knows better than the engine. ``salt``: of all
    prompts (`PromptRows`)."""

    def __init__(self, engine: Engine, metrics: Metrics, queue_seconds: float, salt: bytes = b"") -> None:
        self.outcome: Outcome = "stop"
        self._engine, self._metrics, self._queue_seconds, self._salt = engine, metrics, queue_seconds, salt
        self._streams: list[CountedStream] = []

    def submit(self, *requests: EngineRequest) -> CountedStream:
        """Their events. The first ones fail if the engine has no memory for them within ``queue_seconds``; what is
        submitted later belongs to a request that was begun. What has not ended when the ticket is given back is
        cancelled. LludaError: as `Engine.submit`."""
        deadline = None if self._streams else time.monotonic() + self._queue_seconds
        salted = (
            replace(request, prompt=replace(request.prompt, salt=self._salt), deadline=deadline) for request in requests
        )
        stream = self._engine.submit(*salted)
        self._streams.append(CountedStream(stream, self))
        return self._streams[-1]

    def close(self) -> None:
        """Cancel what has not ended."""
        for stream in self._streams:
            stream.cancel()

    def count(self, event: SpeechEvent, since: float, rate: int) -> None:
        """One event, so many seconds after the one before it; sound of so many samples a second."""
        metrics = self._metrics
        match event:
            case Token():
                metrics.generation_tokens.inc()
                if since >= 0:
                    metrics.inter_token_latency.observe(since)
            case SpeechChunk():
                metrics.audio_seconds.inc(len(event.samples) / rate)
            case Completion():
                metrics.prompt_tokens.inc(event.prompt_tokens)
                metrics.cached_prompt_tokens.inc(event.reused_tokens)
                if event.finish_reason == "length" and self.outcome == "stop":
                    self.outcome = "length"
            case SpeechCompletion() if event.samples:
                metrics.real_time_factor.observe(event.seconds / (event.samples / rate))


SAMPLE_RATE = 24000
"""Of Qwen3-Omni's speech."""


_TURN_SECONDS = 0.002
"""After so much work on events that were all there already, the loop's other tasks have a turn."""


class CountedStream:
    """A `Stream` whose events are counted as they are handed out, and which holds up no other task."""

    def __init__(self, stream: Stream[SpeechEvent], ticket: Ticket) -> None:
        self._stream, self._ticket = stream, ticket
        self._last: dict[int, float] = {}
        self._busy, self._returned = 0.0, time.monotonic()

    def __aiter__(self) -> AsyncIterator[SpeechEvent]:
        return self

    async def __anext__(self) -> SpeechEvent:
        self._busy += time.monotonic() - self._returned
        if self._busy > _TURN_SECONDS:
            self._busy = 0.0
            await asyncio.sleep(0)
        event = await self._stream.__anext__()
        self._returned = now = time.monotonic()
        since = -1.0
        if isinstance(event, Token):
            since = now - self._last.get(event.index, now + 1)
            self._last[event.index] = now
        self._ticket.count(event, since, SAMPLE_RATE)
        return event

    def cancel(self) -> None:
        """End what has not ended."""
        self._stream.cancel()


class Interruption:
    """A block that other tasks can end: `interrupt` cancels the task inside, and the block then raises the error that
    was given there. Entered and left by one task."""

    def __init__(self) -> None:
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._reason: BaseException | None = None

    def interrupt(self, reason: BaseException) -> None:
        """End the block with ``reason``; the first one counts."""
        if self._reason is None and self._task is not None:
            self._reason = reason
            self._task.cancel()

    async def __aenter__(self) -> Self:
        self._task = asyncio.current_task()
        assert self._task is not None, "inside a task"
        self._cancelling = self._task.cancelling()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        if self._reason is not None and task is not None:
            others = task.uncancel() > self._cancelling
            # A generator is closed (GeneratorExit) by a task that was cancelled while it did something else.
            if kind in (asyncio.CancelledError, GeneratorExit) and not others:
                raise self._reason from None
