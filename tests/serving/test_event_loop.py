"""Nothing heavy on the event loop (E14): what each callback of the server's loop takes of its thread's processor time
while requests of many kinds come. Not of the clock's: threads of the same process share two cores in the tests."""

from __future__ import annotations

import asyncio
import base64
import gc
import io
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.serving.oracle import check_well
from tests.serving.running import RunningServer

MOST_SECONDS = 0.1
"""For one callback; all are meant to stay below 5 ms, and what is measured is in journal/19-serving.md."""

MODEL = {"model": "tiny-omni"}
TEXT = "one two three four " * 20_000
"""380 kB, whose tokens take a quarter of a second."""


@contextmanager
def callbacks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[float, str]]]:
    """Seconds and description of the callbacks of the server's loop, the longest last when the block ends."""
    found: list[tuple[float, str]] = []
    run = asyncio.Handle._run

    def timed(handle: asyncio.Handle) -> None:
        if not threading.current_thread().name.startswith("server under test"):
            return run(handle)
        description, began = repr(handle), time.thread_time()
        run(handle)
        found.append((time.thread_time() - began, description))
        return None

    gc.collect()
    gc.freeze()  # what other tests left in this process is not the server's to collect
    with monkeypatch.context() as patch:
        patch.setattr(asyncio.Handle, "_run", timed)
        yield found
    gc.unfreeze()
    found.sort()


def picture() -> str:
    """A data URL of some 3 MB."""
    noise = np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "png")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def chat(content: Any, **fields: Any) -> dict[str, Any]:
    return MODEL | {"messages": [{"role": "user", "content": content}], "max_tokens": 4} | fields


def test_no_callback_holds_up_the_loop(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    properties = {f"p{n}": {"enum": [f"v{m}" for m in range(20)]} for n in range(99)}
    schema = {"name": "large", "schema": {"type": "object", "properties": properties}}
    image = [{"type": "image_url", "image_url": {"url": picture()}}]
    asked: list[tuple[str, Any, int]] = [
        ("/tokenize", {"prompt": TEXT}, 200),
        ("/v1/completions", MODEL | {"prompt": TEXT}, 400),
        ("/v1/chat/completions", chat(TEXT), 400),
        ("/v1/chat/completions", chat(image), 200),
        ("/v1/chat/completions", chat("a", n=8, max_tokens=50, logprobs=True, top_logprobs=20, stream=True), 200),
        ("/v1/chat/completions", chat("a", n=8, max_tokens=50, logprobs=True, top_logprobs=20), 200),
        (
            "/v1/completions",
            MODEL | {"prompt": ["one two " * 200] * 4, "echo": True, "logprobs": 5, "max_tokens": 1},
            200,
        ),
        ("/v1/chat/completions", chat("a", response_format={"type": "json_schema", "json_schema": schema}), 200),
        ("/v1/audio/speech", MODEL | {"input": "One two three.", "voice": "lark", "response_format": "mp3"}, 200),
        ("/tokenize", {"prompt": "a", "metadata": {str(number): number for number in range(100_000)}}, 200),
        ("/tokenize", {"prompt": "a", "metadata": {"text": "a" * (60 << 20)}}, 200),
        ("/detokenize", {"tokens": [500] * 500_000}, 200),
    ]
    with callbacks(monkeypatch) as found, ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda one: server.post(one[0], one[1]), asked))
        for path in ("/metrics", "/openapi.json", "/v1/models", "/health?verbose=true"):
            server.get(path)
    assert [answer.status_code for answer in answers] == [status for _, _, status in asked]
    assert len(found) > 100 and found[-1][0] < MOST_SECONDS, found[-3:]
    check_well(server)


def test_detector_sees_what_blocks(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from lluda.serving.http.keys import Keys

    def accepts(*_: object) -> bool:
        end = time.thread_time() + MOST_SECONDS
        while time.thread_time() < end:
            pass
        return True

    with callbacks(monkeypatch) as found, monkeypatch.context() as patch:
        patch.setattr(Keys, "accepts", accepts)
        server.get("/v1/models")
        server.get("/health")  # by when the callbacks of the first have ended
    assert found[-1][0] >= MOST_SECONDS


def test_metrics_are_cheap_to_scrape(server: RunningServer) -> None:
    """A hundred scrapes while an answer is made (E20)."""
    body = {"prompt": [5, 6, 7, 8], "max_tokens": 300}
    alone = server.post("/example", body).json()
    began = time.process_time()
    for _ in range(20):
        server.service.metrics.render()
    assert time.process_time() - began < 20 * 0.05, "more than ten times what a scrape may take"
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(server.post, "/example", body)
        texts = [server.get("/metrics").text for _ in range(100)]
        assert answer.result().json() == alone
    assert "lluda_requests_running 1.0" in "".join(texts)
