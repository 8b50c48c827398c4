"""A chat page (chainlit over the openai client) on top of the server."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

from lluda.serving.reading.marks import Mark
from tests.clients.environments import require, run, variables
from tests.serving.oracle import check_well
from tests.serving.running import RunningServer

HERE = Path(__file__).parent
SECONDS = 100.0
SUMS = {"type": "object", "properties": {"sum": {"enum": [5, 6]}}, "required": ["sum"], "additionalProperties": False}


@contextmanager
def running_app(server: RunningServer, tmp_path: Path) -> Iterator[str]:
    """The app's address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = tmp_path / "log"
    command = [require("chainlit") / "bin/chainlit", "run", HERE / "chainlit_app.py", "--headless", "--port", str(port)]
    asked = {"OPENAI_BASE_URL": f"{server.url}/v1", "OPENAI_API_KEY": "none", "CHAINLIT_APP_ROOT": str(tmp_path)}
    with log.open("w") as out, subprocess.Popen(command, env=variables(**asked), stdout=out, stderr=out) as app:
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(url, log)
            yield url
        finally:
            app.terminate()


def wait_for(url: str, log: Path) -> None:
    ends = time.monotonic() + SECONDS
    while time.monotonic() < ends:
        try:
            httpx2.get(url).raise_for_status()
            return
        except httpx2.TransportError:
            time.sleep(0.1)
    pytest.fail(f"chainlit did not start:\n{log.read_text()}")


def thinking(server: RunningServer) -> dict[str, Any]:
    """Fields for which tiny-omni, which was never taught to, thinks a little before it answers."""
    tokenizer = server.model.tokenizer
    return {
        "reasoning_effort": "high",
        "response_format": {"type": "json_schema", "json_schema": {"name": "sums", "schema": SUMS}},
        "logit_bias": {str(tokenizer.id_of(Mark.THINK_END.value)): 14},
        "max_tokens": 2000,
        "temperature": 0,
    }


def test_chainlit_s_protocol(server: RunningServer, answer: str, tmp_path: Path) -> None:
    folder = require("chainlit")
    picture = tmp_path / "picture.png"
    Image.new("RGB", (64, 64), (200, 30, 30)).save(picture)
    with running_app(server, tmp_path) as url:
        command = [folder / "bin/python", HERE / "chainlit_session.py", url, picture, json.dumps(thinking(server))]
        found = json.loads(run(command, tmp_path))
    assert found["models"] == ["tiny-omni"]
    for turn in found["turns"]:
        (message,) = turn["messages"]
        assert not message["error"]
        assert "".join(turn["assistant_message"]) == message["text"] != ""
        assert len(turn["assistant_message"]) > 3
    plain, seen, thought = found["turns"]
    assert plain["messages"][0]["text"] == answer
    assert plain["llm"] == []
    assert plain["messages"][0]["metadata"]["image_tokens"] == 0
    assert seen["messages"][0]["metadata"]["image_tokens"] > 0
    assert "".join(thought["llm"]).strip()
    assert json.loads(thought["messages"][0]["text"])["sum"] in (5, 6)
    check_well(server)


def test_chainlit_s_page_in_a_browser(server: RunningServer, answer: str, tmp_path: Path) -> None:
    require("chainlit")
    folder = require("browser")
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        pytest.skip("there is no chromium here: apt-get install chromium")
    picture = tmp_path / "picture.png"
    Image.new("RGB", (64, 64), (200, 30, 30)).save(picture)
    with running_app(server, tmp_path) as url:
        command = [folder / "bin/python", HERE / "chainlit_page.py", url, picture, json.dumps(thinking(server))]
        seen = json.loads(run(command, tmp_path))
    assert seen["faults"] == []
    assert seen["model"] == "tiny-omni"
    assert seen["plain"].strip() == answer
    assert seen["of_picture"].strip() and seen["pictures"] == 1
    assert '"sum"' in seen["thoughtful"] and any(number in seen["thoughtful"] for number in "56")
    assert "Thoughts" in seen["folded"] and len(seen["unfolded"]) > len(seen["folded"])
    check_well(server)
