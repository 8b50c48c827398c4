"""Streams: messages as they are made, errors inside them, pings, and what a client that leaves ends."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import lluda
from lluda.engine.runner import Runner
from lluda.serving.limits import Limits
from tests.serving.oracle import check_error, check_well, wait_until_idle
from tests.serving.running import RunningServer, running_server

BODY = {"prompt": [5, 6, 7, 8], "max_tokens": 6}


def messages(text: str) -> list[str]:
    assert text.endswith("\n\n")
    return [line.removeprefix("data: ") for line in text.split("\n\n") if line]


def test_stream_has_the_tokens_of_the_whole_answer(server: RunningServer) -> None:
    whole = server.post("/example", BODY).json()["ids"]
    response = server.post("/example", BODY | {"stream": True})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache" and response.headers["x-accel-buffering"] == "no"
    *tokens, done = messages(response.text)
    assert done == "[DONE]"
    assert [json.loads(token)["id"] for token in tokens] == whole


def test_error_before_the_first_message_has_a_status(server: RunningServer) -> None:
    response = server.post("/example", BODY | {"stream": True, "prompt": [10**9]})
    check_error(response, 400)
    check_well(server)


def test_client_that_leaves_cancels_its_request(server: RunningServer, caplog: pytest.LogCaptureFixture) -> None:
    before = server.model.engine.stats().cancelled
    with server.client.stream("POST", "/example", json=BODY | {"stream": True, "max_tokens": 4000}) as response:
        next(response.iter_lines())
    wait_until_idle(server)
    assert server.model.engine.stats().cancelled == before + 1
    check_well(server)
    assert "ERROR" not in caplog.text, "clients leave every day"


def test_silent_stream_is_kept_awake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comment lines while nothing comes, before the first message too; none of them is a message."""
    step = Runner.prefill_rows

    def slowly(self: Runner, *arguments: Any, **options: Any) -> Any:
        time.sleep(0.5)
        return step(self, *arguments, **options)

    with running_server(limits=Limits(ping_seconds=0.1)) as server:
        whole = server.post("/example", BODY | {"stream": True}).text
        with monkeypatch.context() as patch:
            patch.setattr(Runner, "prefill_rows", slowly)
            text = server.post("/example", BODY | {"stream": True, "prompt": [9, *BODY["prompt"]]}).text
        assert text.startswith(": ping\n\n: ping\n\n") and text.endswith("data: [DONE]\n\n")
        assert ": ping" not in whole
        check_well(server)


def test_error_after_a_ping_is_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        time.sleep(0.5)
        raise ValueError("of the engine")

    with running_server(limits=Limits(ping_seconds=0.1)) as server:
        with monkeypatch.context() as patch:
            patch.setattr(Runner, "prefill_rows", fails)
            response = server.post("/example", BODY | {"stream": True})
        assert response.status_code == 200
        assert '"code":"internal_error"' in response.text.split("\n\n")[-2]
        check_well(server)


def test_equal_request_ids_mix_nothing(server: RunningServer) -> None:
    """Clients may use one id for many requests (C20)."""
    bodies = [BODY | {"prompt": [9, number, 7], "max_tokens": 30} for number in range(8)]
    alone = [server.post("/example", body).json() for body in bodies]
    with ThreadPoolExecutor(8) as threads:
        answers = list(
            threads.map(lambda body: server.post("/example", body, headers={"x-request-id": "same"}), bodies)
        )
    assert [answer.json() for answer in answers] == alone
    assert {answer.headers["x-request-id"] for answer in answers} == {"same"}


def test_more_than_the_kv_cache_holds_waits_its_turn() -> None:
    """Requests of whole contexts, of which one fits at a time (E3): each as alone, and none is stuck."""
    bodies = [{"prompt": [5, number, 7, 8], "max_tokens": 200} for number in range(6)]
    with running_server(load=lambda: lluda.load("tiny-omni", threads=1, max_sequences=1, max_context=256)) as server:
        alone = [server.post("/example", body).json() for body in bodies]
        with ThreadPoolExecutor(6) as threads:
            assert [
                answer.json() for answer in threads.map(lambda body: server.post("/example", body), bodies)
            ] == alone
        assert server.model.engine.stats().kv_budget == 256
        check_error(server.post("/example", bodies[0] | {"max_tokens": 300}), 400, "context_length_exceeded")
        check_well(server)
