"""Four callers are answered in sound at the same time."""

import base64
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from tests.serving.oracle import check_well

QUESTIONS = (
    "What is the capital of France?",
    "What is seven plus eight?",
    "What is the opposite of hot?",
    "How do you spell elephant?",
)


def body(question):
    return {
        "model": "tiny-omni",
        "messages": [{"role": "user", "content": question}],
        "modalities": ["text", "audio"],
        "audio": {"voice": "lark", "format": "pcm16"},
        "stream": True,
        "temperature": 0,
    }


def listen(server, question, together=None):
    """The text and the samples of a streamed answer."""
    text, sound = [], []
    with httpx2.Client(base_url=server.url, timeout=60) as client:
        if together is not None:
            together.wait()
        with client.stream("POST", "/v1/chat/completions", json=body(question)) as response:
            assert response.status_code == 200
            for line in response.iter_lines():
                if not line.startswith("data: {"):
                    continue
                for choice in json.loads(line.removeprefix("data: "))["choices"]:
                    text.append(choice["delta"].get("content") or "")
                    sound.append(base64.b64decode((choice["delta"].get("audio") or {}).get("data", "")))
    return "".join(text), b"".join(sound)


@pytest.fixture(scope="module")
def alone(server):
    return [listen(server, question) for question in QUESTIONS]


def test_each_hears_what_it_would_hear_alone(server, alone):
    together = threading.Barrier(len(QUESTIONS))
    with ThreadPoolExecutor(len(QUESTIONS)) as pool:
        heard = list(pool.map(lambda question: listen(server, question, together), QUESTIONS))
    assert heard == alone
    assert all(text and len(sound) > 24000 for text, sound in heard)
    check_well(server)


def test_none_waits_for_sound_once_it_has_begun(server, alone):
    """Tiny-omni makes speech many times as fast as it is heard, also four at once on two cores: of five turns, one at
    least has no sound that came late. Nothing can be said where other processes take the cores."""
    counts = []
    for _ in range(5):
        before = underruns(server)
        test_each_hears_what_it_would_hear_alone(server, alone)
        counts.append(underruns(server) - before)
        if counts[-1] == 0:
            return
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > cores + 1:
        pytest.skip(f"other processes take the cores: a load of {load:.1f} on {cores}")
    raise AssertionError(f"sound came late in every turn: {counts}")


def underruns(server):
    (metric,) = server.service.metrics.speech_underruns.collect()
    return next(sample.value for sample in metric.samples if sample.name.endswith("_total"))
