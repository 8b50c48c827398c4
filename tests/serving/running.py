"""A server in a thread of the test's process, and what tests ask it with."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx2

import lluda
from lluda.serving.http.keys import Keys
from lluda.serving.http.listener import listen
from lluda.serving.limits import Limits
from lluda.serving.server import Server
from lluda.serving.service import Service
from lluda.serving.settings import Settings
from tests.serving.example import example_endpoints

SECONDS = 60.0
"""Far more than anything here takes."""


class RunningServer:
    """``url``, ``port``, ``service``, ``model``; `get` and `post` over one client."""

    def __init__(self, server: Server, service: Service, port: int) -> None:
        self.server, self.service, self.port = server, service, port
        self.url = f"http://127.0.0.1:{port}"
        self.client = httpx2.Client(base_url=self.url, timeout=SECONDS)

    @property
    def model(self) -> Any:
        return self.service.model

    def get(self, path: str, **options: Any) -> httpx2.Response:
        return self.client.get(path, **options)

    def post(self, path: str, json: Any, **options: Any) -> httpx2.Response:
        return self.client.post(path, json=json, **options)

    def connect(self) -> socket.socket:
        """A connection, for what no client sends."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=SECONDS)

    def raw(self, data: bytes) -> bytes:
        """All that comes back for ``data`` until the server closes."""
        with self.connect() as connection:
            with suppress(OSError):  # refused before it was read whole
                connection.sendall(data)
            return read_all(connection)


def read_all(connection: socket.socket) -> bytes:
    """Until the other side closes."""
    parts = []
    with suppress(ConnectionResetError):
        while part := connection.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


@contextmanager
def running_server(
    *, limits: Limits | None = None, keys: Keys | None = None, load: Any = None, **settings: Any
) -> Iterator[RunningServer]:
    """A server of tiny-omni (or what ``load`` gives) on a free port, with the endpoints of `example`
    beside its own; drained at the end."""
    sockets = listen("127.0.0.1", 0)
    started, found, ended = threading.Event(), [], []

    def ready(service: Service) -> None:
        found.append(service)
        started.set()

    chosen = Settings(limits=limits or Limits(), keys=keys or Keys(), **settings)
    server = Server(chosen, load or (lambda: lluda.load("tiny-omni", threads=1)), sockets, ready, ended.append)

    def run() -> None:
        try:
            ended.append(server.run())
        except BaseException as error:
            ended.append(error)
            started.set()

    thread = threading.Thread(target=run, name="server under test")
    try:
        with example_endpoints():
            thread.start()
            assert started.wait(SECONDS) and found, f"no server: {ended}"
        running = RunningServer(server, found[0], sockets[0].getsockname()[1])
        try:
            yield running
        finally:
            running.client.close()
    finally:
        server.stop()
        thread.join(SECONDS)
    assert ended == [0], f"the server ended with {ended}; of an engine that failed, the log says why"
