"""One session of hours in minutes: what the server holds while a conversation goes on.

Sound is sent as fast as it is taken, silence between turns too, and answers leave as fast as they are made: nobody
listens. ``python -m tests.serving.realtime.long_session HOURS FILE`` writes the rows as JSON; give it what the command
sets before torch is imported (`lluda.cli.heavy_imports`): ONEDNN_PRIMITIVE_CACHE_CAPACITY=64 LRU_CACHE_CAPACITY=64.
"""

from __future__ import annotations

import base64
import gc
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from websockets.sync.client import ClientConnection, connect

from lluda.serving.limits import Limits
from lluda.serving.realtime.answers.speech_pace import SpeechPace
from tests.serving.realtime.talking import pcm
from tests.serving.realtime.test_twenty_questions import said
from tests.serving.running import SECONDS, RunningServer, running_server
from training.world import held_out_turns

RATE = 24_000
TURN_SECONDS = 30
"""From the beginning of one question to that of the next."""

INTERRUPTED = 8
"""Every so many questions is spoken into the answer before it."""

LONGEST = 24
"""Tokens and frames of an answer: tiny-omni, which learnt single turns, talks on where many came before."""

_MESSAGE_SECONDS = 0.5
"""Of sound in one event."""


@dataclass(frozen=True)
class Held:
    """After so many ``minutes`` of the conversation: resident memory in MiB, threads and open files of the process
    (server and client), answers so far and how many of them were spoken into, and seconds that all took."""

    minutes: float
    resident: float
    threads: int
    files: int
    answers: int
    interrupted: int
    seconds: float


@contextmanager
def nobody_listens() -> Iterator[None]:
    """Answers wait for no listener."""
    real = SpeechPace.take

    async def take(self: SpeechPace, seconds: float) -> None:
        self.sent += seconds

    SpeechPace.take = take  # type: ignore[method-assign]
    try:
        yield
    finally:
        SpeechPace.take = real  # type: ignore[method-assign]


def converse(server: RunningServer, hours: float, every_minutes: float) -> Iterator[Held]:
    """What is held after every so many minutes of a session of so many hours."""
    questions = [said(server, turn.question) for turn in held_out_turns(8, 20)]
    options: dict[str, Any] = {
        "max_size": 1 << 24,
        "compression": None,
        "open_timeout": SECONDS,
        "ping_interval": None,
        "max_queue": None,
    }
    begun, told, open_answers = time.monotonic(), 0.0, 0
    outcomes: Counter[str] = Counter()
    with nobody_listens(), connect(f"ws://127.0.0.1:{server.port}/v1/realtime?model=tiny-omni", **options) as client:
        client.send(
            json.dumps({"type": "session.update", "session": {"type": "realtime", "max_output_tokens": LONGEST}})
        )
        for number in range(round(hours * 3600 / TURN_SECONDS)):
            question = questions[number % len(questions)]
            samples = np.zeros(TURN_SECONDS * RATE, np.float32)
            samples[RATE : RATE + len(question)] = question
            spoken_into = number % INTERRUPTED == INTERRUPTED - 1
            _speak(client, samples[: RATE + len(question) + RATE] if spoken_into else samples)
            open_answers += 1
            while open_answers and not spoken_into:
                outcomes[_outcome(client)] += 1
                open_answers -= 1
            minutes = (number + 1) * TURN_SECONDS / 60
            if minutes - told >= every_minutes:
                told = minutes
                gc.collect()
                yield Held(minutes, *_held(), outcomes.total(), outcomes["cancelled"], time.monotonic() - begun)


def _speak(client: ClientConnection, samples: Any) -> None:
    step = int(_MESSAGE_SECONDS * RATE)
    for start in range(0, len(samples), step):
        audio = base64.b64encode(pcm(samples[start : start + step])).decode()
        client.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))


def _outcome(client: ClientConnection) -> str:
    """Of the next answer that ends."""
    while True:
        event = json.loads(client.recv(timeout=SECONDS))
        assert event["type"] != "error", event
        if event["type"] == "response.done":
            status: str = event["response"]["status"]
            return status


def _held() -> tuple[float, int, int]:
    status = Path("/proc/self/status").read_text()
    resident = int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024
    return round(resident, 1), threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))


if __name__ == "__main__":
    rows = []
    limits = Limits(realtime_session_seconds=24 * 3600, realtime_ping_seconds=3600)
    with running_server(limits=limits) as measured:
        for row in converse(measured, float(sys.argv[1]), every_minutes=10.0):
            print(row, flush=True)
            rows.append(asdict(row))
            Path(sys.argv[2]).write_text(json.dumps({"turn_seconds": TURN_SECONDS, "rows": rows}, indent=1) + "\n")
