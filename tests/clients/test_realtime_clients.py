"""Realtime clients against the server: a spoken turn, a tool's round trip, and speaking into an answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lluda.inputs.media.audio_file import open_audio
from tests.clients.environments import require, run
from tests.serving.oracle import check_well
from tests.serving.running import RunningServer

HERE = Path(__file__).parent
QUESTION = HERE.parents[1] / "examples/question.flac"
RATE = 24_000
ANSWER = "A young lion is a cub."
LONG = "Elephant is spelled"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's question and 1.2 s of silence, as raw int16 at 24 kHz."""
    samples = np.concatenate([*open_audio(str(QUESTION), None, where="the question").blocks(RATE)])
    padded = np.concatenate((samples, np.zeros(int(1.2 * RATE), np.float32)))
    path = tmp_path_factory.mktemp("sound") / "question.s16"
    path.write_bytes((padded * 32767).astype("<i2").tobytes())
    return path


def transcript(response: dict[str, Any]) -> str:
    """What the response said."""
    parts = [part for item in response["output"] for part in item.get("content") or ()]
    return "".join(part.get("transcript") or part.get("text") or "" for part in parts)


def check_session(found: dict[str, Any]) -> None:
    """A question was heard and answered, one spoken into an answer was, too, and a function was called once. What
    tiny-omni answers behind half an answer is not of its world, and differs with where it was cut."""
    assert found["errors"] == []
    assert transcript(found["turn"]) == ANSWER
    assert transcript(found["after"])
    assert found["turn"]["status"] == "completed"
    assert found["after"]["status"] in ("completed", "incomplete")  # it may go on until it is cut
    assert found["sound"] > RATE
    assert len(found["truncated"]) == 1
    assert [item["type"] for item in found["called"]] == ["function_call"]
    assert [item["type"] for item in found["answered"]] == ["message"]


def test_openai_agents(server: RunningServer, sound: Path) -> None:
    folder = require("agents")
    found = json.loads(run([folder / "bin/python", HERE / "realtime_agents.py", server.url, sound], folder))
    check_session(found)
    assert found["interrupted"]
    assert found["calls"] == ["get_weather"]
    check_well(server)


def test_openai_agents_npm(server: RunningServer, sound: Path) -> None:
    folder = require("npm")
    found = json.loads(run(["node", HERE / "realtime_npm.mjs", server.url, sound], folder))
    check_session(found)
    assert found["interrupted"] > 0
    assert found["calls"] == 1
    check_well(server)


def test_pipecat(server: RunningServer, sound: Path) -> None:
    folder = require("pipecat")
    found = json.loads(run([folder / "bin/python", HERE / "realtime_pipecat.py", server.url, sound], folder))
    check_session(found)
    assert found["calls"] == ["get_weather"]
    check_well(server)


def test_livekit(server: RunningServer, sound: Path) -> None:
    folder = require("livekit")
    found = json.loads(run([folder / "bin/python", HERE / "realtime_livekit.py", server.url, sound], folder))
    assert found["errors"] == []
    assert found["turn"]["text"] == ANSWER
    assert found["after"]["text"]
    assert found["turn"]["samples"] > RATE
    assert LONG.startswith(found["interrupted"]["text"][: len(LONG)])
    assert found["calls"] == ["get_weather"]
    assert found["answered"]["text"]
    kinds = [event["type"] for event in found["raw"]]
    assert "conversation.item.truncated" in kinds
    assert "error" not in kinds
    check_well(server)
