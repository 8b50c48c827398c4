"""Callers of a server: so many at once, each with one request after the other, and what they saw."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

from lluda.bench.server.call import Address, Seen, ask, get, speak
from lluda.bench.server.spoken_turns import WAYS, take_turn
from lluda.errors import InvalidRequest

ARRIVALS_SECONDS = 0.02
"""Between the first request of one caller and of the next."""

_WORDS = (
    "one two three four five six seven eight nine ten red green blue small large house river tree bird stone".split()
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What callers ask. ``concurrency``: how many there are at once, one round for each number; ``requests`` of each
    caller; ``prompt`` words, and ``generate`` tokens of each answer; ``turns``: seconds of what is spoken in place of
    all that is typed; ``timeout``: seconds without a byte. InvalidRequest: a number below 1."""

    concurrency: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    requests: int = 4
    prompt: int = 64
    generate: int = 64
    turns: tuple[int, ...] = ()
    speech: bool = True
    timeout: float = 120.0

    def __post_init__(self) -> None:
        if not self.concurrency or min(*self.concurrency, self.requests, self.prompt, self.generate, *self.turns) < 1:
            raise InvalidRequest("concurrency, requests, prompt, gen and turns must be at least 1")
        if self.timeout <= 0:
            raise InvalidRequest(f"timeout must be above 0 seconds, not {self.timeout}")


@dataclass(frozen=True, slots=True)
class Round:
    """What ``callers`` at once saw of one ``kind`` of request: ``text``, ``spoken`` (an answer in text and sound),
    ``speech`` (a text read aloud), or a `Way` to take a turn and its seconds, as ``said30``."""

    kind: str
    callers: int
    seen: tuple[Seen, ...]


def measure(address: Address, load: Load, progress: Callable[[str, int, int], None] | None = None) -> Iterator[Round]:
    """Each kind of request that the server takes, for each number of callers; one call of each kind (of turns the
    shortest) goes before, and is not counted. InvalidRequest: no server, or none that answers."""
    model = served_model(address, load.timeout)
    kinds = _kinds(model, load)
    numbers = count()
    for kind in [f"{way}{min(load.turns)}" for way in WAYS] if load.turns else kinds:
        first = _call(address, model, kind, load, next(numbers))
        if first.error:
            raise InvalidRequest(f"the server refuses what is to be measured ({kind}): {first.error}")
    steps = [(kind, callers) for kind in kinds for callers in load.concurrency]
    for done, (kind, callers) in enumerate(steps):
        if progress:
            progress(f"{kind}, {callers} callers", done, len(steps))
        yield Round(kind, callers, tuple(_together(address, model, kind, load, callers, numbers)))


def served_model(address: Address, timeout: float) -> dict[str, Any]:
    """The model's entry of ``/v1/models``."""
    models = get(address, "/v1/models", timeout).get("data") or []
    if not models:
        raise InvalidRequest("the server has no model; wait until it is loaded")
    found: dict[str, Any] = models[0]
    return found


def _kinds(model: dict[str, Any], load: Load) -> list[str]:
    speaks = "audio" in _outputs(model)
    if not load.turns:
        return ["text", *(("spoken", "speech") if load.speech and speaks else ())]
    if not speaks:
        raise InvalidRequest(f"{model['id']} does not speak; leave --turns out")
    return [f"{way}{seconds}" for seconds in load.turns for way in WAYS]


def _outputs(model: dict[str, Any]) -> list[str]:
    outputs: list[str] = (model.get("modalities") or {}).get("output", ["text"])
    return outputs


def _together(
    address: Address, model: dict[str, Any], kind: str, load: Load, callers: int, numbers: Iterator[int]
) -> list[Seen]:
    seen: list[Seen] = []
    taken = threading.Lock()

    def caller() -> None:
        for _ in range(load.requests):
            with taken:
                number = next(numbers)
            found = _call(address, model, kind, load, number)
            with taken:
                seen.append(found)

    threads = [threading.Thread(target=caller, daemon=True) for _ in range(callers)]
    for thread in threads:
        thread.start()
        time.sleep(ARRIVALS_SECONDS)
    for thread in threads:
        thread.join()
    return seen


def _call(address: Address, model: dict[str, Any], kind: str, load: Load, number: int) -> Seen:
    """Request ``number``. No two begin alike, so that no computed prompt serves another."""
    way = next((way for way in WAYS if load.turns and kind.startswith(way)), None)
    if way is not None:
        seconds = int(kind.removeprefix(way))
        return take_turn(address, model["id"], way, seconds, number, tokens=load.generate, timeout=load.timeout)
    words = f"{number}: " + " ".join(_WORDS[(number * 7 + place * place) % len(_WORDS)] for place in range(load.prompt))
    if kind == "speech":
        body = {"model": model["id"], "input": words[:4000], "voice": "alloy", "response_format": "pcm"}
        return speak(address, body, load.timeout)
    body = {
        "model": model["id"],
        "messages": [{"role": "user", "content": words}],
        "max_completion_tokens": load.generate,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if kind == "spoken":
        body |= {"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "pcm16"}}
    return ask(address, body, load.timeout)
