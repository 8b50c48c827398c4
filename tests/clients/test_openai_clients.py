"""openai (npm) and openai-agents against the server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.clients.environments import require, run
from tests.serving.oracle import check_well
from tests.serving.running import RunningServer

HERE = Path(__file__).parent


def test_openai_npm(server: RunningServer, answer: str) -> None:
    folder = require("npm")
    found = json.loads(run(["node", HERE / "npm_session.mjs", server.url], folder))
    assert found["answer"] == found["content"] == found["transcript"] == found["response"] == answer
    assert found["call"]["name"] == "get_weather"
    assert json.loads(found["call"]["arguments"])["city"] in ("Oslo", "Rome")
    assert found["data"] % 2 == 0
    assert found["data"] > 24_000
    assert found["models"] == ["tiny-omni"]
    assert found["error"] == ["BadRequestError", 400, "temperature"]
    check_well(server)


@pytest.fixture(scope="module")
def agents(server: RunningServer) -> dict[str, object]:
    folder = require("agents")
    found: dict[str, object] = json.loads(run([folder / "bin/python", HERE / "agents_session.py", server.url], folder))
    return found


@pytest.mark.parametrize("model", ["OpenAIChatCompletionsModel", "OpenAIResponsesModel"])
def test_openai_agents(
    agents: dict[str, dict[str, dict[str, object]]], server: RunningServer, answer: str, model: str
) -> None:
    found = agents["sessions"][model]
    assert found["answer"] == found["streamed"] == answer
    assert "raw_response_event" in found["events"]  # type: ignore[operator]
    items = ["ToolCallItem", "ToolCallOutputItem", "MessageOutputItem"]
    assert found["items"] == found["streamed items"] == items
    check_well(server)


def test_openai_agents_calls_the_function(agents: dict[str, list[str]]) -> None:
    assert len(agents["called"]) == 4
    assert set(agents["called"]) <= {"Oslo", "Rome"}
