"""A client of /v1/realtime that records what it is told, and asks whether OpenAI's own types know it."""

from __future__ import annotations

import base64
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from websockets.client import ClientProtocol
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from tests.serving.realtime.event_types import check_event
from tests.serving.running import SECONDS, RunningServer

CHUNK = 960
"""Samples of 40 ms at 24 kHz, as pages send them."""


class Talk:
    """One session. ``events`` is all that came, each checked; with ``beta`` by the names of the API's beta."""

    def __init__(self, connection: ClientConnection, *, beta: bool = False) -> None:
        self.connection, self.beta = connection, beta
        self.events: list[dict[str, Any]] = []

    def send(self, kind: str, **fields: Any) -> None:
        self.connection.send(json.dumps({"type": kind, **fields}))

    def receive(self, seconds: float = SECONDS) -> dict[str, Any]:
        event: dict[str, Any] = json.loads(self.connection.recv(timeout=seconds))
        if not self.beta:
            check_event(event)
        self.events.append(event)
        return event

    def until(self, kind: str, **fields: Any) -> dict[str, Any]:
        """The next event of that type (whose fields are these), after those before it."""
        end = time.monotonic() + SECONDS
        while True:
            event = self.receive(max(0.0, end - time.monotonic()))
            if event["type"] == kind and all(event[name] == value for name, value in fields.items()):
                return event
            if event["type"] == "error" and kind != "error":
                raise AssertionError(event)

    def update(self, **session: Any) -> dict[str, Any]:
        """The session, after an update that is taken."""
        self.send("session.update", session={"type": "realtime", **session})
        session_: dict[str, Any] = self.until("session.updated")["session"]
        return session_

    def refused(self, kind: str, **fields: Any) -> dict[str, Any]:
        """The error that an event is answered with."""
        self.send(kind, event_id="mine", **fields)
        error: dict[str, Any] = self.until("error")["error"]
        assert error["event_id"] == "mine"
        return error

    def append(self, samples: Any, pause: float = 0.0) -> None:
        """Samples at 24 kHz in pieces, one every ``pause`` seconds."""
        for start in range(0, len(samples), CHUNK):
            self.send_pcm(pcm(samples[start : start + CHUNK]))
            if pause:
                time.sleep(pause)

    def send_pcm(self, data: bytes) -> None:
        """Sound in the input format."""
        self.send("input_audio_buffer.append", audio=base64.b64encode(data).decode())

    def ask(self, text: str, **response: Any) -> dict[str, Any]:
        """The answer to a text."""
        self.write(text)
        self.send("response.create", response=response)
        return self.answer()

    def write(self, text: str) -> None:
        self.send("conversation.item.create", item=user_text(text))
        self.until("conversation.item.done")

    def answer(self) -> dict[str, Any]:
        """The next response, when it is done."""
        response: dict[str, Any] = self.until("response.done")["response"]
        return response

    def types(self, start: int = 0) -> list[str]:
        """Of the events from ``start`` on, repeated ones once."""
        found: list[str] = []
        for event in self.events[start:]:
            if not found or found[-1] != event["type"]:
                found.append(event["type"])
        return found

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == kind]

    def sound(self, response_id: str | None = None) -> bytes:
        """All sound that came."""
        deltas = self.of("response.audio.delta" if self.beta else "response.output_audio.delta")
        wanted = [one for one in deltas if response_id in (None, one["response_id"])]
        return b"".join(base64.b64decode(one["delta"]) for one in wanted)


@contextmanager
def talking(server: RunningServer, path: str = "?model=tiny-omni", **options: Any) -> Iterator[Talk]:
    """A session that has begun."""
    beta = options.pop("beta", False)
    options = {"max_size": 1 << 24, "compression": None, "open_timeout": SECONDS, **options}
    with connect(f"ws://127.0.0.1:{server.port}/v1/realtime{path}", **options) as connection:
        talk = Talk(connection, beta=beta)
        talk.until("session.created")
        talk.until("conversation.created")
        yield talk


@contextmanager
def mute_connection(server: RunningServer, *subprotocols: str) -> Iterator[tuple[socket.socket, ClientProtocol]]:
    """A session whose client answers nothing by itself, no ping and no close; what it reads goes into the protocol."""
    uri = parse_uri(f"ws://127.0.0.1:{server.port}/v1/realtime")
    protocol = ClientProtocol(uri, subprotocols=[Subprotocol(one) for one in ("realtime", *subprotocols)])
    protocol.send_request(protocol.connect())
    with socket.create_connection(("127.0.0.1", server.port), timeout=1) as connection:
        connection.sendall(b"".join(protocol.data_to_send()))
        protocol.receive_data(connection.recv(1000))
        yield connection, protocol


def user_text(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}


def pcm(samples: Any) -> bytes:
    return (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()


def eventually(holds: Callable[[], bool]) -> None:
    """Wait for what happens soon."""
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)
