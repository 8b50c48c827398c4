"""One turn of a conversation over /v1/realtime, as a client with a microphone sends it, and what comes back."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from lluda.bench.measured.voice import stillness, voice
from lluda.bench.server.call import Address, Seen
from lluda.extras import missing

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from websockets.sync.connection import Connection

Way = Literal["said", "held", "sent"]
"""``said``: in real time, and the server finds out that it is over, by its default rules; ``held``: in real time, until
a key is let go of; ``sent``: at once, as a recording that has ended."""

RATE = 24_000
WAYS: tuple[Way, ...] = get_args(Way)
_PIECE = RATE // 25
_ENOUGH_SECONDS = 4.0
"""Of an answer's sound; then it is broken off."""

_LARGEST_EVENT = 1 << 24
_ROOM_SECONDS = 1.0
_INSTRUCTIONS = "You are a voice assistant. Answer in a few short sentences, as people speak."


def take_turn(
    address: Address, model: str, way: Way, seconds: int, number: int, *, tokens: int, timeout: float
) -> Seen:
    """A session with one turn of so many seconds and an answer of at most so many tokens. ``sent`` is the end of the
    speech, or when the recording was sent. No two ``number`` are the same sound. MissingDependency: websockets."""
    try:
        from websockets.exceptions import WebSocketException
        from websockets.sync.client import connect
    except ImportError:
        raise missing("a spoken turn", "websockets") from None
    samples, seen = voice(seconds, RATE, number), Seen()
    scheme = "wss" if address.is_secure else "ws"
    url = f"{scheme}://{address.host}:{address.port}{address.path}/v1/realtime?model={model}"
    headers = {"authorization": f"Bearer {address.key}"} if address.key else None
    try:
        with connect(url, additional_headers=headers, max_size=_LARGEST_EVENT, compression=None) as connection:
            _Turn(connection, way, seen, timeout).take(samples, tokens)
    except (OSError, WebSocketException, ValueError) as error:
        seen.error = f"{type(error).__name__}: {error}"
    seen.ended = time.perf_counter()
    return seen


class _Turn:
    """One connection. What comes is noted while the microphone's thread speaks."""

    def __init__(self, connection: Connection, way: Way, seen: Seen, timeout: float) -> None:
        self._connection, self._way, self._seen, self._timeout = connection, way, seen, timeout
        self._over = threading.Event()

    def take(self, samples: NDArray[np.float32], tokens: int) -> None:
        session: dict[str, Any] = {
            "type": "realtime", "instructions": _INSTRUCTIONS, "max_output_tokens": tokens
        }  # fmt: skip
        if self._way != "said":
            session["audio"] = {"input": {"turn_detection": None}}
        self._send("session.update", session=session)
        while self._next()["type"] != "session.updated":
            pass
        speaking = threading.Thread(target=self._speak, args=(samples,), daemon=True)
        speaking.start()
        try:
            self._hear()
        finally:
            self._over.set()
            speaking.join()

    def _hear(self) -> None:
        """Until the answer is over."""
        count = 0
        while (event := self._next())["type"] != "response.done":
            now = time.perf_counter()
            if event["type"] == "input_audio_buffer.committed":
                self._seen.turn_ended = now
                if not self._seen.sent:
                    raise ValueError("the turn was cut before its end")
            elif event["type"] == "response.output_audio_transcript.delta":
                self._seen.texts.append(now)
            elif event["type"] == "response.output_audio.delta":
                count += len(base64.b64decode(event["delta"]))
                enough = count >= _ENOUGH_SECONDS * 2 * RATE
                if enough and self._seen.sounds[-1][1] < _ENOUGH_SECONDS * 2 * RATE:
                    self._send("response.cancel")
                self._seen.sounds.append((now, count))
        details = event["response"].get("usage", {}).get("output_token_details", {})
        self._seen.tokens = details.get("text_tokens", 0)

    def _next(self) -> dict[str, Any]:
        event: dict[str, Any] = json.loads(self._connection.recv(timeout=self._timeout))
        if event["type"] == "error":
            raise ValueError(event["error"]["message"])
        return event

    # On the microphone's thread.

    def _speak(self, samples: NDArray[np.float32]) -> None:
        if self._way == "sent":
            self._seen.sent = time.perf_counter()
            sound = [{"type": "input_audio", "audio": _encoded(samples)}]
            self._send("conversation.item.create", item={"type": "message", "role": "user", "content": sound})
            self._send("response.create")
            return
        begun = time.perf_counter()
        self._append(samples, begun)
        self._seen.sent = begun + len(samples) / RATE
        if self._way == "held":
            self._send("input_audio_buffer.commit")
            self._send("response.create")
        else:
            for room in self._room():
                self._append(room, time.perf_counter())

    def _room(self) -> Iterator[NDArray[np.float32]]:
        """The microphone goes on until the answer is over."""
        samples = stillness(_ROOM_SECONDS, RATE)
        while not self._over.is_set():
            yield samples

    def _append(self, samples: NDArray[np.float32], begun: float) -> None:
        """Each piece when its last sample has been recorded."""
        for start in range(0, len(samples), _PIECE):
            piece = samples[start : start + _PIECE]
            wait = begun + (start + len(piece)) / RATE - time.perf_counter()
            if self._over.wait(max(0.0, wait)):
                return
            self._send("input_audio_buffer.append", audio=_encoded(piece))

    def _send(self, kind: str, **fields: Any) -> None:
        self._connection.send(json.dumps({"type": kind, **fields}))


def _encoded(samples: NDArray[np.float32]) -> str:
    return base64.b64encode((samples.clip(-1, 1) * 32767).astype("<i2").tobytes()).decode()
