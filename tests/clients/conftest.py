"""The server that all clients ask."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serving.running import RunningServer, running_server

QUESTION = "What is two plus three?"


@pytest.fixture(scope="session")
def server() -> Iterator[RunningServer]:
    """tiny-omni on a free port."""
    with running_server() as running:
        yield running


@pytest.fixture(scope="session")
def answer(server: RunningServer) -> str:
    """What the server says to the question of all clients when it is asked without one."""
    body = {"model": "tiny-omni", "messages": [{"role": "user", "content": QUESTION}]}
    text: str = server.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"]
    assert text
    return text
