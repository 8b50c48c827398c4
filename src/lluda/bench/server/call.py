"""One call of a server, as a client sees it: when its text and its sound came."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from lluda.errors import InvalidRequest

SAMPLES_A_SECOND, BYTES_A_SAMPLE = 24_000, 2
"""Of the ``pcm`` format (OpenAI's: mono, 16 bits)."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens. ``path``: what its routes begin with, without ``/v1``."""

    host: str
    port: int
    path: str
    is_secure: bool = False
    key: str | None = None

    @classmethod
    def of(cls, url: str, key: str | None = None) -> Address:
        """InvalidRequest: ``url`` is no address of a server."""
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            raise InvalidRequest(f"--serve takes a server's address, as http://127.0.0.1:8000, not {url!r:.80}")
        secure = parts.scheme == "https"
        path = parts.path.rstrip("/").removesuffix("/v1")
        return cls(parts.hostname, port or (443 if secure else 80), path, secure, key)

    def connect(self, timeout: float) -> http.client.HTTPConnection:
        """A connection, not opened yet. ``timeout``: seconds without a byte."""
        kind = http.client.HTTPSConnection if self.is_secure else http.client.HTTPConnection
        return kind(self.host, self.port, timeout=timeout)


@dataclass(slots=True)
class Seen:
    """What came of one call, in seconds of ``time.perf_counter``. ``turn_ended``: when the server said that a spoken
    turn was over (0: it was none). ``texts``: when a piece of text came; ``sounds``: when so many bytes of sound had
    come. ``tokens``: of the answer, as the server counts them. ``error``: why it failed."""

    sent: float = 0.0
    turn_ended: float = 0.0
    ended: float = 0.0
    texts: list[float] = field(default_factory=list)
    sounds: list[tuple[float, int]] = field(default_factory=list)
    tokens: int = 0
    prompt_tokens: int = 0
    error: str = ""

    @property
    def audio_seconds(self) -> float:
        """Of sound."""
        return self.sounds[-1][1] / (SAMPLES_A_SECOND * BYTES_A_SAMPLE) if self.sounds else 0.0

    @property
    def underruns(self) -> int:
        """How often a listener who began with the first sound had heard all that had come, before the end."""
        count, played_until = 0, 0.0
        for index, (at, _) in enumerate(self.sounds):
            before = self.sounds[index - 1][1] if index else 0
            if index and at > played_until:
                count += 1
                played_until = at
            begun = at if not index else played_until
            played_until = begun + (self.sounds[index][1] - before) / (SAMPLES_A_SECOND * BYTES_A_SAMPLE)
        return count


def get(address: Address, route: str, timeout: float) -> Any:
    """A JSON document of the server. InvalidRequest: there is none."""
    connection = address.connect(timeout)
    try:
        connection.request("GET", f"{address.path}{route}", headers=_headers(address))
        reply = connection.getresponse()
        body = reply.read()
    except OSError as error:
        where = f"{address.host}:{address.port}"
        raise InvalidRequest(
            f"{where}: no server answers there ({error}); start one with `lluda serve --port {address.port}`"
        ) from None
    finally:
        connection.close()
    if reply.status != 200:
        raise InvalidRequest(f"{route}: the server answers {reply.status}: {body[:200].decode(errors='replace')}")
    return json.loads(body)


def ask(address: Address, body: dict[str, Any], timeout: float) -> Seen:
    """A streamed chat answer to ``body``, of text or of text and sound."""
    seen = Seen()
    with _Exchange(address, "/v1/chat/completions", body, seen, timeout) as reply:
        for event in _events(reply):
            _note(event, seen)
    return seen


def speak(address: Address, body: dict[str, Any], timeout: float) -> Seen:
    """A text read aloud, as ``pcm`` while it is made."""
    seen = Seen()
    with _Exchange(address, "/v1/audio/speech", body, seen, timeout) as reply:
        count = 0
        while piece := reply.read1(1 << 16):
            count += len(piece)
            seen.sounds.append((time.perf_counter(), count))
    return seen


class _Exchange:
    """A request and its reply; an error of either is noted in what was seen."""

    def __init__(self, address: Address, route: str, body: dict[str, Any], seen: Seen, timeout: float) -> None:
        self._address, self._route, self._body, self._seen = address, route, body, seen
        self._connection = address.connect(timeout)

    def __enter__(self) -> http.client.HTTPResponse | _Nothing:
        seen, data = self._seen, json.dumps(self._body).encode()
        seen.sent = time.perf_counter()
        try:
            self._connection.request(
                "POST", f"{self._address.path}{self._route}", data,
                {"content-type": "application/json", **_headers(self._address)},
            )  # fmt: skip
            reply = self._connection.getresponse()
            if reply.status == 200:
                return reply
            seen.error = f"{reply.status}: {reply.read()[:200].decode(errors='replace')}"
        except (OSError, http.client.HTTPException) as error:
            seen.error = _told(error)
        return _Nothing()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        self._seen.ended = time.perf_counter()
        self._connection.close()
        if isinstance(error, OSError | http.client.HTTPException | ValueError):
            self._seen.error = _told(error)
            return True
        return False


class _Nothing:
    """The reply of a call that failed."""

    def read1(self, size: int) -> bytes:  # noqa: ARG002 (as HTTPResponse)
        return b""

    def readline(self) -> bytes:
        return b""


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _headers(address: Address) -> dict[str, str]:
    return {"authorization": f"Bearer {address.key}"} if address.key else {}


def _events(reply: http.client.HTTPResponse | _Nothing) -> Iterator[dict[str, Any]]:
    while line := reply.readline():
        data = line.strip().removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
        if data == b"[DONE]":
            return
        if data:
            yield json.loads(data)


def _note(event: dict[str, Any], seen: Seen) -> None:
    now = time.perf_counter()
    if event.get("error"):
        raise ValueError(event["error"].get("message", "the stream broke off"))
    usage = event.get("usage")
    if usage:
        seen.tokens = usage["completion_tokens"] - (usage.get("completion_tokens_details") or {}).get("audio_tokens", 0)
        seen.prompt_tokens = usage["prompt_tokens"]
    for choice in event.get("choices", ()):
        delta = choice.get("delta", {})
        if delta.get("content") or delta.get("reasoning_content"):
            seen.texts.append(now)
        data = (delta.get("audio") or {}).get("data")
        if data:
            before = seen.sounds[-1][1] if seen.sounds else 0
            seen.sounds.append((now, before + len(data) * 3 // 4 - data.count("=", -2)))
