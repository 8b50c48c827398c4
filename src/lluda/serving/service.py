"""What the endpoints share: the model, its names and voices, limits, admission, workers, counters, and its state."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from starlette.requests import Request
from starlette.types import Scope

from lluda.serving.admission import Admission
from lluda.serving.answers.head import fingerprint
from lluda.serving.answers.spoken_answers import SpokenAnswers
from lluda.serving.engine_metrics import EngineMetrics
from lluda.serving.http.errors import RETRY_SECONDS, ApiError, ClientDisconnected, unavailable
from lluda.serving.media.fetch import Fetcher
from lluda.serving.metrics import Metrics
from lluda.serving.model_names import ModelNames
from lluda.serving.readiness import Readiness
from lluda.serving.realtime.client_secrets import ClientSecrets
from lluda.serving.realtime.sessions import Sessions
from lluda.serving.source_commit import source_commit
from lluda.serving.ticket import Interruption, Ticket
from lluda.serving.voices import Voices

if TYPE_CHECKING:
    from lluda.api.model import Model
    from lluda.serving.settings import Settings

_P = ParamSpec("_P")
_T = TypeVar("_T")


class State(Enum):
    """Where the server stands; requests are taken in READY only."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class Service:
    """One model and all that serves it. For one event loop; `in_worker` is where blocking work goes."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.limits, self.keys = settings, settings.limits, settings.keys
        self.metrics = Metrics()
        self.admission = Admission(self.limits)
        self.voices = Voices(())
        self.spoken_answers = SpokenAnswers()
        self.sessions, self.client_secrets = Sessions(self.limits), ClientSecrets(settings.replica)
        self.fetcher = Fetcher(settings.media_domains, self.limits.fetch_bytes, self.limits.fetch_seconds)
        self.fingerprint = ""
        """What computes the answers, as they say it."""
        self.commit = source_commit()
        """What the server was made of, as it started."""
        self.state = State.LOADING
        self.started = int(time.time())
        self.ended = asyncio.Event()
        """Set when the last request has ended while none is taken any more."""
        self.exposition: Callable[[], Awaitable[bytes]] = self._own_metrics
        """What Prometheus reads: of several replicas, all their counters."""
        self.held_bytes = 0
        self.closing: threading.Thread | None = None
        """Waits for the engine to end its last step."""
        self._model: Model | None = None
        self._names: ModelNames | None = None
        self._readiness: Readiness | None = None
        self._open: set[Interruption] = set()
        self._workers = ThreadPoolExecutor(self.limits.workers, thread_name_prefix="lluda worker")
        self.metrics.watch(self.metrics.requests_running, lambda: self.admission.running)
        self.metrics.watch(self.metrics.requests_waiting, lambda: self.admission.waiting)
        self.metrics.watch(self.metrics.realtime_sessions, lambda: len(self.sessions))

    @property
    def model(self) -> Model:
        """ApiError 503 ``loading``: it is not there yet."""
        if self._model is None:
            raise unavailable("loading", "the model is being loaded; try again soon")
        return self._model

    @property
    def names(self) -> ModelNames:
        """What the model is called; ApiError as `model`."""
        self.model  # noqa: B018 (raises)
        assert self._names is not None, "set with the model"
        return self._names

    def check_model(self, name: str) -> None:
        """ApiError 404 ``model_not_found``; 503 ``loading``."""
        self.names.check(name)

    async def in_worker(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """What ``function`` returns or raises, computed beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._workers, partial(function, *args, **kwargs))

    async def use(self, model: Model) -> None:
        """Take requests for ``model`` from now on; what speaks is loaded first, unless the settings say otherwise."""
        omni = model.config.omni
        if not self.settings.speaks:
            self.voices = Voices((), "this server was started without speech (--no-speech)")
        elif omni is not None and omni.speech is not None:
            await self.in_worker(model.speech_stack)
            self.voices = Voices(tuple(omni.speech.talker.speakers))
        if model.media is not None:
            self.limits.bound(model.media)
            await self.in_worker(lambda: model.unclear_answer)  # asked once, before anybody speaks
        engine = model.engine
        engine.observer = EngineMetrics(self.metrics)
        self.metrics.watch(
            self.metrics.kv_cache_usage, lambda: engine.stats().kv_positions / max(1, engine.stats().kv_budget)
        )
        self._names = ModelNames(model.files.name, self.settings.served_names)
        self._readiness = Readiness(model)
        self.fingerprint = fingerprint(model)
        self._model = model
        if self.state is State.LOADING:
            self.state = State.READY

    @property
    def readiness(self) -> Readiness:
        """ApiError as `model`."""
        self.model  # noqa: B018 (raises)
        assert self._readiness is not None, "set with the model"
        return self._readiness

    @property
    def has_failed(self) -> bool:
        """Whether the engine is dead."""
        return self.state is State.FAILED or (self._model is not None and self._model.engine.error is not None)

    @asynccontextmanager
    async def admit(
        self, endpoint: str, request: Request | None, sequences: int = 1, *, first: bool = False, salt: bytes = b""
    ) -> AsyncIterator[Ticket]:
        """Leave to run ``sequences`` on the engine, waited for (``first``: before all others). All that runs inside
        ends when the client goes away (without a ``request`` somebody else sees to that), after ``request_seconds``, or
        when the server ends; exactly one outcome is counted. Prompts share rows only with those of one ``salt``, which
        is that of the request's key where there is a ``request``.

        To be entered and left by the task that handles the request, in a stream by its generator.

        ApiError: 429 ``queue_full``; 503 ``loading``, ``draining``, ``engine_dead``, ``queue_timeout``,
        ``request_timeout``. ClientDisconnected: nobody waits for the answer.
        """
        self.check_open()
        arrived = time.monotonic()
        self.metrics.requests_received.labels(endpoint).inc()
        interruption = Interruption()
        outcome = "error"
        salt = salt if request is None else request.scope["state"]["salt"]
        ticket = Ticket(self.model.engine, self.metrics, self.limits.queue_seconds, salt)
        try:
            place = self.admission.place(sequences, first=first)
            async with interruption, self._attended(request, interruption), place:
                self.metrics.queue_seconds.observe(time.monotonic() - arrived)
                yield ticket
                outcome = ticket.outcome
        except (ClientDisconnected, asyncio.CancelledError, GeneratorExit):
            outcome = "cancelled"
            raise
        except ApiError as error:
            if error.code in _REFUSALS:
                self.metrics.rejected.labels(error.code).inc()
            raise
        finally:
            ticket.close()
            self.metrics.requests.labels(endpoint, outcome).inc()
            self.metrics.request_latency.observe(time.monotonic() - arrived)
            if not self._open:
                self._notice_end()

    @property
    def open_requests(self) -> int:
        """Requests inside `admit`."""
        return len(self._open)

    def hold_body(self, request: Request, count: int) -> None:
        """``count`` bytes more of a body are in memory, until `let_go`. ApiError 429: those of all are too many."""
        if self.held_bytes + count > self.limits.bodies_bytes:
            raise ApiError(
                429,
                "queue_full",
                f"the bodies of all requests have {self.limits.bodies_bytes:,} bytes, which is all this server holds; "
                "try again",
                headers={"retry-after": str(RETRY_SECONDS)},
            )
        self.held_bytes += count
        request.scope["state"][_HELD] = request.scope["state"].get(_HELD, 0) + count

    def let_go(self, scope: Scope) -> None:
        """A request has ended."""
        self.held_bytes -= scope["state"].pop(_HELD, 0)

    def check_open(self) -> None:
        """ApiError 503: no requests are taken now."""
        match self.state:
            case State.LOADING:
                raise unavailable("loading", "the model is being loaded; try again soon")
            case State.DRAINING:
                raise unavailable("draining", "the server is being stopped; ask another one, or try again later")
            case State.FAILED:
                raise _dead()

    async def drain(self) -> None:
        """Take no requests any more; give those that run ``drain_seconds`` to end, then end them with an error."""
        if self.state is not State.FAILED:
            self.state = State.DRAINING
        seconds = self.limits.drain_seconds
        _, all_ended = await asyncio.gather(self.sessions.drain(seconds), self._all_ended(seconds))
        if not all_ended:
            self._interrupt(unavailable("draining", "the server was stopped before this request ended"))
            await self._all_ended(_LAST_WORDS_SECONDS)

    def fail(self) -> None:
        """The engine is dead or hangs: end all requests, and take no more."""
        self.state = State.FAILED
        self.sessions.end_all(1011, _dead())
        self._interrupt(_dead())

    def close(self) -> None:
        """Let go of threads. What is being computed is not waited for."""
        self._workers.shutdown(wait=False, cancel_futures=True)
        if self._model is not None and not self.has_failed:
            self.closing = threading.Thread(target=self._model.close, name="lluda closing", daemon=True)
            self.closing.start()

    @asynccontextmanager
    async def _attended(self, request: Request | None, interruption: Interruption) -> AsyncIterator[None]:
        """While inside, ``interruption`` comes when the client leaves, or the time of a request is over."""
        loop = asyncio.get_running_loop()
        watch = None if request is None else loop.create_task(_disconnected(request, interruption))
        clock = loop.call_later(self.limits.request_seconds, interruption.interrupt, self._too_long())
        self._open.add(interruption)
        try:
            yield
        finally:
            self._open.discard(interruption)
            clock.cancel()
            if watch is not None:
                watch.cancel()

    async def _own_metrics(self) -> bytes:
        return self.metrics.render()

    def _too_long(self) -> ApiError:
        message = f"the request took more than {self.limits.request_seconds:g} s; ask for fewer tokens"
        return unavailable("request_timeout", message, retry=False)

    def _interrupt(self, reason: ApiError) -> None:
        for interruption in list(self._open):
            interruption.interrupt(reason)

    def _notice_end(self) -> None:
        if self.state is not State.READY:
            self.ended.set()

    async def _all_ended(self, seconds: float) -> bool:
        self.ended.clear()
        if not self._open:
            return True
        try:
            async with asyncio.timeout(seconds):
                await self.ended.wait()
        except TimeoutError:
            return False
        return True


_LAST_WORDS_SECONDS = 2.0
"""For an error to reach the clients of requests that were ended."""

_HELD = "held_bytes"
"""Of a request's state."""

_REFUSALS = ("queue_full", "queue_timeout")


async def _disconnected(request: Request, interruption: Interruption) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    interruption.interrupt(ClientDisconnected())


def _dead() -> ApiError:
    return unavailable("engine_dead", "the engine has failed, and the server is about to end", retry=False)
