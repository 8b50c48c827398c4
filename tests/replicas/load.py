"""Callers who ask one after the other until they are told to stop, and what became of each request."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx2

_SECONDS = 60.0
_WORDS = ("elephant", "kitchen", "window", "summer", "garden", "yellow", "teacher", "bottle")


@dataclass(slots=True)
class Asked:
    """One request; ``failure`` is empty where it was answered in full."""

    began: float
    ended: float = 0.0
    failure: str = ""

    @property
    def seconds(self) -> float:
        return self.ended - self.began


@dataclass
class Load:
    """Requests, those that have not ended among them."""

    asked: list[Asked] = field(default_factory=list)

    @property
    def failures(self) -> list[Asked]:
        return [one for one in self.asked if one.failure]

    def since(self, moment: float) -> list[Asked]:
        return [one for one in self.asked if one.began >= moment]

    def wait_for(self, count: int, since: float = 0.0) -> None:
        """Until so many that began after ``since`` were answered."""
        last = time.monotonic() + _SECONDS
        while sum(one.ended > 0 and not one.failure for one in self.since(since)) < count:
            assert time.monotonic() < last, f"{len(self.since(since))} requests, failures: {self.failures[:5]}"
            time.sleep(0.05)


@contextmanager
def callers(url: str, count: int) -> Iterator[Load]:
    """``count`` of them, half of whom read streams; at the end, what they asked last is waited for."""
    load, over, numbers = Load(), threading.Event(), itertools.count()

    def call(streams: bool) -> None:
        with httpx2.Client(base_url=url, timeout=_SECONDS) as client:
            while not over.is_set():
                one = Asked(time.monotonic())
                load.asked.append(one)
                try:
                    _ask(client, next(numbers), streams)
                except Exception as error:
                    one.failure = f"{type(error).__name__}: {error}"[:300]
                one.ended = time.monotonic()

    threads = [threading.Thread(target=call, args=(bool(number % 2),)) for number in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        over.set()
        for thread in threads:
            thread.join(_SECONDS)
    assert not any(thread.is_alive() for thread in threads)


def _ask(client: httpx2.Client, number: int, streams: bool) -> None:
    question = f"Spell the word {_WORDS[number % len(_WORDS)]}."
    body = {
        "model": "tiny-omni",
        "messages": [{"role": "system", "content": f"Caller {number}."}, {"role": "user", "content": question}],
        "stream": streams,
        "max_tokens": 160,
        "ignore_eos": True,
    }
    if not streams:
        answer = client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["finish_reason"], answer.text
        return
    with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200, answer.read()
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]", lines[-1]
