"""The events of one or several requests on their way from the engine's thread to whoever asked."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Generic, Self, TypeVar, cast

from lluda.engine.forked import require_own_threads
from lluda.engine.request import SpeechEvent

Event = TypeVar("Event", bound=SpeechEvent)

CAPACITY = 32
"""Events that may wait for a reader before its requests stand still."""


class Channel:
    """What the engine writes to and a `Stream` reads from. Bounded: the engine asks ``is_full`` before it goes on with
    a request, so a slow reader stalls its own requests alone; what one step makes is always taken.

    ``wake`` is called when a reader made room, or wants no more.
    """

    def __init__(self, requests: int, wake: Callable[[], None], capacity: int = CAPACITY) -> None:
        self.cancelled = False
        self._wake, self._capacity = wake, capacity
        self._events: deque[SpeechEvent | BaseException] = deque()
        self._open = requests
        self._failed = False
        self._changed = threading.Condition()
        self._waiter: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    @property
    def is_full(self) -> bool:
        """Whether the reader is behind."""
        return len(self._events) >= self._capacity

    def put(self, event: SpeechEvent) -> None:
        """One event more."""
        with self._changed:
            if not self._failed:
                self._events.append(event)
            self._notify()

    def end(self, error: BaseException | None = None) -> None:
        """One of the requests has ended; with ``error``, which the reader is told after the events before it."""
        with self._changed:
            self._open -= 1
            if error is not None and not self._failed:
                self._events.append(error)
            self._notify()

    def cancel(self) -> None:
        """The reader wants no more: its requests end within a step."""
        with self._changed:
            if self.cancelled or not self._open:
                return
            self.cancelled = True
        self._wake()

    def take(self, timeout: float | None = None) -> SpeechEvent | None:
        """The next event, waited for; None: there are no more. TimeoutError: none came in time."""
        with self._changed:
            if not self._changed.wait_for(self._ready, timeout):
                raise TimeoutError(f"no event came within {timeout} s")
            return self._taken()

    async def take_async(self) -> SpeechEvent | None:
        """As `take`, for a coroutine."""
        while True:
            with self._changed:
                if self._ready():
                    return self._taken()
                happened = asyncio.Event()
                self._waiter = (asyncio.get_running_loop(), happened)
            await happened.wait()

    def _ready(self) -> bool:
        return bool(self._events) or self._open == 0 or self._failed

    def _taken(self) -> SpeechEvent | None:
        if not self._events:
            return None
        was_full = self.is_full
        event = self._events.popleft()
        if isinstance(event, BaseException):
            self._give_up()
            raise event
        if was_full:
            self._wake()
        return event

    def _give_up(self) -> None:
        """One of the requests failed: the reader is told of no more, so the others end too."""
        self._failed = True
        self._events.clear()
        if self._open:
            self.cancelled = True
            self._wake()

    def _notify(self) -> None:
        self._changed.notify()
        if self._waiter is not None:
            (loop, happened), self._waiter = self._waiter, None
            with contextlib.suppress(RuntimeError):  # a loop that was closed waits for nothing
                loop.call_soon_threadsafe(happened.set)


class Stream(Generic[Event]):
    """The events of what was submitted: an iterator, or an asynchronous one. The last event of a request is its
    Completion, or SpeechCompletion where it is spoken; an error of a request is raised after the events before it, and
    ends the stream: its other requests are cancelled.

    ``cancel`` (``close`` is the same, and so is letting go of the stream) ends what has not ended: within a step, with
    a Completion whose finish_reason is ``cancelled`` for whoever reads on.
    """

    def __init__(self, channel: Channel, engine: object) -> None:
        self._channel = channel
        self._engine = engine  # which goes on as long as someone reads

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        event = self.get()
        if event is None:
            raise StopIteration
        return event

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        require_own_threads()
        event = await self._channel.take_async()
        if event is None:
            raise StopAsyncIteration
        return cast("Event", event)

    def get(self, timeout: float | None = None) -> Event | None:
        """The next event; None after the last. TimeoutError: none came within ``timeout`` seconds. LludaError: in a
        fork, where nobody computes."""
        require_own_threads()
        return cast("Event | None", self._channel.take(timeout))

    def cancel(self) -> None:
        """End what has not ended."""
        self._channel.cancel()

    close = cancel

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.cancel()

    def __del__(self) -> None:
        self._channel.cancel()
