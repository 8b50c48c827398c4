"""Streams: messages as they are made, errors inside them, pings, and what a client that leaves ends."""

from __future__ import annotations

import json

from tests.serving.oracle import check_error, check_well, wait_until_idle
from tests.serving.running import RunningServer

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


def test_client_that_leaves_cancels_its_request(server: RunningServer) -> None:
    before = server.model.engine.stats().cancelled
    with server.client.stream("POST", "/example", json=BODY | {"stream": True, "max_tokens": 4000}) as response:
        next(response.iter_lines())
    wait_until_idle(server)
    assert server.model.engine.stats().cancelled == before + 1
    check_well(server)
