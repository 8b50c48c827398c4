"""The life of a server: listen, load, serve, drain, end."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import uvicorn

from lluda.serving.app import build_app
from lluda.serving.http.connection import Connection, connection_class
from lluda.serving.http.websocket import websocket_class
from lluda.serving.service import Service
from lluda.serving.settings import Settings
from lluda.serving.watchdog import Watchdog

if TYPE_CHECKING:
    from lluda.api.model import Model

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))
_BACKLOG = 64
"""Connections that are accepted at a time: asyncio takes so many before it looks at one of them."""

_SPARE_DESCRIPTORS = 64 + _BACKLOG
"""Not for connections: files, child processes, sockets that listen, and those that are to be refused."""

_LAST_SECONDS = 3.0
"""For answers of a server whose engine has failed, and for the last step of one that ends."""


class Server:
    """Serves one model on sockets that listen already.

    ``load`` gives the model, in a thread; ``ready`` is called when requests are taken. The first SIGTERM, SIGINT or
    SIGHUP drains; the second ends the process at once, by ``end_process``, as an engine that has failed does after its
    last answers.
    """

    def __init__(
        self,
        settings: Settings,
        load: Callable[[], Model],
        sockets: list[socket.socket],
        ready: Callable[[Service], None] = lambda _: None,
        end_process: Callable[[int], object] = os._exit,
    ) -> None:
        self.settings = replace(settings, limits=replace(settings.limits, connections=connections_here(settings)))
        self._load, self._sockets, self._ready, self._end_process = load, sockets, ready, end_process
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._loading: threading.Thread | None = None
        self._closing: threading.Thread | None = None
        self._watchdog: Watchdog | None = None

    def run(self) -> int:
        """Serve until stopped; the exit code: 0 after draining, 1 where the engine failed. Errors of ``load``."""
        code = asyncio.run(self._serve())
        if self._closing is not None:
            self._closing.join(_LAST_SECONDS)
        if any(thread is not None and thread.is_alive() for thread in (self._loading, self._closing)):
            # What they do cannot be interrupted, and nothing it makes is wanted.
            sys.stdout.flush()
            self._end_process(code)
        return code

    def stop(self) -> None:
        """As a first signal does; from any thread."""
        if self._loop is not None:
            with suppress(RuntimeError):  # it has ended already
                self._loop.call_soon_threadsafe(self._begin_stop)

    async def _serve(self) -> int:
        self._loop = asyncio.get_running_loop()
        self._service = service = Service(self.settings)
        self._uvicorn = _Uvicorn(_config(service))
        with self._signals(self._loop):
            serving = self._loop.create_task(self._uvicorn.serve(sockets=self._sockets))
            loading = self._loop.create_task(self._load_model(service))
            await asyncio.wait({serving, loading}, return_when=asyncio.FIRST_COMPLETED)
            if loading.done() and loading.exception() is not None:
                self._uvicorn.should_exit = True
            try:
                await serving
            finally:
                loading.cancel()
                if self._watchdog is not None:
                    self._watchdog.stop()
                service.close()
                self._closing = service.closing
        if loading.done() and not loading.cancelled():
            loading.result()  # raises what went wrong
        return 1 if service.has_failed else 0

    async def _load_model(self, service: Service) -> None:
        loop = asyncio.get_running_loop()
        loaded: asyncio.Future[Model] = loop.create_future()

        def work() -> None:
            try:
                model = self._load()
            except BaseException as error:
                _tell(loop, loaded, None, error)
            else:
                _tell(loop, loaded, model, None)

        self._loading = threading.Thread(target=work, name="lluda loading", daemon=True)
        self._loading.start()
        model = await loaded
        self._watchdog = Watchdog(model.engine, self.settings.limits.step_seconds, self._failed)
        await service.use(model)
        await service.in_worker(_settle_memory)
        self._ready(service)

    @contextmanager
    def _signals(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """Handlers, where this is the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        taken = [number for number, handler in before.items() if handler is not signal.SIG_IGN]  # nohup
        for number in taken:
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            yield
        finally:
            for number in taken:
                loop.remove_signal_handler(number)
                signal.signal(number, before[number])

    def _on_signal(self, number: int) -> None:
        if self._stopping is not None:
            self._end_process(128 + number)
        self._begin_stop()

    def _begin_stop(self) -> None:
        if self._stopping is None:
            self._stopping = asyncio.get_running_loop().create_task(self._stop())

    async def _stop(self) -> None:
        await self._service.drain()
        for connection in list(self._uvicorn.server_state.connections):
            if isinstance(connection, Connection):
                connection.abort_unfinished()
        await asyncio.sleep(0)  # by when those are lost
        self._uvicorn.should_exit = True

    def _failed(self) -> None:
        """On the watchdog's thread."""
        ended = threading.Timer(_LAST_SECONDS, self._end_process, (1,))
        ended.daemon = True
        ended.start()
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._service.fail)
            self._loop.call_soon_threadsafe(self._begin_stop)


def connections_here(settings: Settings) -> int:
    """Connections that may be open: the limit, or what the process's file descriptors allow."""
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if descriptors == resource.RLIM_INFINITY:
        return settings.limits.connections
    return max(1, min(settings.limits.connections, descriptors - _SPARE_DESCRIPTORS))


class _Uvicorn(uvicorn.Server):
    """Signals are ours, and so is the length of the kernel's line of connections."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn has it."""
        await super().startup(sockets)
        for one in sockets or ():
            one.listen(socket.SOMAXCONN)  # asyncio made it as short as the number it accepts at a time

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """None of them."""
        yield


def _config(service: Service) -> uvicorn.Config:
    limits = service.limits
    return uvicorn.Config(
        build_app(service),
        loop="asyncio",
        http=connection_class(limits),
        ws=websocket_class(limits),
        ws_max_size=limits.realtime_event_bytes,
        ws_ping_interval=limits.realtime_ping_seconds,
        ws_ping_timeout=limits.realtime_ping_seconds,
        ws_per_message_deflate=False,  # sound in base64 is not made shorter by it
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        timeout_keep_alive=int(limits.keep_alive_seconds),
        timeout_graceful_shutdown=1,  # what runs was waited for by Service.drain
    )


def _settle_memory() -> None:
    """What is loaded stays: the collector need not look at it again, which holds up all threads for 50 ms."""
    gc.collect()
    gc.freeze()


def _tell(
    loop: asyncio.AbstractEventLoop,
    future: asyncio.Future[Model],
    model: Model | None,
    error: BaseException | None,
) -> None:
    def tell() -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        elif model is not None:
            future.set_result(model)

    with suppress(RuntimeError):  # the loop has ended meanwhile
        loop.call_soon_threadsafe(tell)
