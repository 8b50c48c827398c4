"""Many requests at once: a small asynchronous client, an open loop and mixed traffic. `Elsewhere` runs them in a
process of their own: in the server's they would take its time."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import random
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

ANSWER_SECONDS = 60.0


@dataclass(slots=True)
class Tally:
    """What came back: answers by status (0: the client left), seconds of the good ones, the most that waited."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    without_retry: int = 0

    def add(self, status: int, head: bytes, seconds: float) -> None:
        self.statuses[status] += 1
        if status == 200:
            self.seconds.append(seconds)
        if status == 429 and b"retry-after: " not in head:
            self.without_retry += 1


async def ask(port: int, path: str, body: dict[str, Any] | bytes, tally: Tally, *, leave: float | None = None) -> bytes:
    """One request on a connection of its own; with ``leave`` the client goes away after so many seconds."""
    began = time.monotonic()
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nconnection: close\r\ncontent-type: application/json\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
        if leave is not None:
            await asyncio.sleep(leave)
            tally.statuses[0] += 1
            return b""
        async with asyncio.timeout(ANSWER_SECONDS):
            answer = await reader.read()
    finally:
        writer.close()
    top, _, rest = answer.partition(b"\r\n\r\n")
    tally.add(int(top.split(b" ", 2)[1]), top, time.monotonic() - began)
    return rest


async def closed_loop(port: int, path: str, body: dict[str, Any], clients: int, seconds: float) -> Tally:
    """``clients`` that ask again as soon as they are answered."""
    tally, end = Tally(), time.monotonic() + seconds

    async def client() -> None:
        while time.monotonic() < end:
            await ask(port, path, body, tally)

    await asyncio.gather(*(client() for _ in range(clients)))
    return tally


async def open_loop(port: int, path: str, body: dict[str, Any], rate: float, seconds: float) -> Tally:
    """``rate`` requests a second, whatever becomes of those before."""
    tally, began = Tally(), time.monotonic()
    tasks: set[asyncio.Task[bytes]] = set()
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
        tasks.add(asyncio.create_task(ask(port, path, body, tally)))
        tasks = {task for task in tasks if not task.done()}
    await asyncio.gather(*tasks)
    return tally


async def mixed(port: int, clients: int, seconds: float, seed: int) -> Tally:
    """Chats, continuations, streams, speech and tokens of ``clients`` at a time; one in twenty is bad, one in twenty is
    left."""
    tally, end, chance = Tally(), time.monotonic() + seconds, random.Random(seed)

    async def client() -> None:
        while time.monotonic() < end:
            path, body = _request(chance)
            leaves = chance.random() < 0.05
            await ask(port, path, body, tally, leave=chance.random() * 0.1 if leaves else None)

    await asyncio.gather(*(client() for _ in range(clients)))
    return tally


MODEL = {"model": "tiny-omni"}
QUESTIONS = ("What is one plus two?", "Which day comes after Monday?", "What is the capital of France?")
BAD: tuple[tuple[str, dict[str, Any] | bytes], ...] = (
    ("/v1/chat/completions", b"{"),
    ("/v1/chat/completions", MODEL | {"messages": []}),
    ("/v1/chat/completions", MODEL | {"messages": [{"role": "king", "content": "a"}]}),
    ("/v1/completions", MODEL | {"prompt": "one", "max_tokens": -1}),
    ("/v1/completions", MODEL | {"prompt": [10**9]}),
    ("/v1/completions", MODEL | {"prompt": "one " * 20_000}),
    ("/v1/audio/speech", MODEL | {"input": "", "voice": "lark"}),
    ("/v1/nothing", {}),
    ("/tokenize", {"prompt": 1}),
)


def _request(chance: random.Random) -> tuple[str, dict[str, Any] | bytes]:
    kind = chance.random()
    if kind < 0.05:
        return chance.choice(BAD)
    messages = [{"role": "user", "content": chance.choice(QUESTIONS)}]
    stream, seed = chance.random() < 0.5, chance.randrange(1000)
    if kind < 0.45:
        fields = {"messages": messages, "stream": stream, "seed": seed, "max_tokens": 24, "n": chance.choice((1, 1, 2))}
        return "/v1/chat/completions", MODEL | fields
    if kind < 0.8:
        return "/v1/completions", MODEL | {"prompt": "one two", "max_tokens": 30, "stream": stream, "seed": seed}
    if kind < 0.9:
        return "/v1/audio/speech", MODEL | {"input": "One two.", "voice": "lark", "response_format": "wav"}
    return "/tokenize", {"prompt": "one two three"}


class Elsewhere:
    """A process that makes traffic."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))

    def start(self, traffic: Callable[..., Coroutine[Any, Any, Tally]], *arguments: Any) -> Future[Tally]:
        """One of the functions above."""
        return self._pool.submit(_run, traffic, arguments)

    def run(self, traffic: Callable[..., Coroutine[Any, Any, Tally]], *arguments: Any) -> Tally:
        """The same, waited for."""
        return self.start(traffic, *arguments).result()

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown()


def _run(traffic: Callable[..., Coroutine[Any, Any, Tally]], arguments: tuple[Any, ...]) -> Tally:
    return asyncio.run(traffic(*arguments))
