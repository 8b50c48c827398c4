"""The commands of README.md and docs/serving.md, and those of contrib's unit and Dockerfile, run as they are written
there but for the port and the place where lluda is."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving.processes import SECONDS, ServerProcess, serving

ROOT = Path(__file__).resolve().parents[2]
WRITTEN = "http://127.0.0.1:8000"
BRIEFLY = ("--concurrency", "1", "--gen", "8", "--repeat", "1")
"""What is added to the measurement, which else takes minutes."""


def commands(file: str) -> list[list[str]]:
    """Those in the first block of commands with ``lluda serve`` in it, each as words."""
    blocks = re.findall(r"```\n(.*?)```", (ROOT / file).read_text(), re.DOTALL)
    block = next(block for block in blocks if "\nlluda serve" in block)
    return [shlex.split(line, comments=True) for line in block.replace("\\\n", "").splitlines()]


def the_one(file: str, *beginning: str) -> list[str]:
    """The first command that begins so."""
    return next(words for words in commands(file) if tuple(words[: len(beginning)]) == beginning)


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    words = the_one("README.md", "lluda", "serve")
    assert words == the_one("docs/serving.md", "lluda", "serve")
    with serving(*words[2:], "--port", "0") as process:
        process.wait_for("ready after")
        yield process


def run(server: ServerProcess, words: list[str]) -> str:
    here = [word.replace(WRITTEN, server.url) for word in words]
    assert here != words, "it names the server"
    done = subprocess.run(here, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_the_question(server: ServerProcess) -> None:
    answer = json.loads(run(server, [*the_one("docs/serving.md", "curl"), "--silent"]))
    assert "Paris" in answer["choices"][0]["message"]["content"]


@pytest.mark.slow
def test_the_measurement(server: ServerProcess) -> None:
    words = the_one("README.md", "lluda", "bench")
    told = run(server, [sys.executable, "-m", *words, *BRIEFLY])
    assert "tiny-omni" in told and re.search(r"callers|concurrency", told), told


def test_the_unit(tmp_path: Path) -> None:
    """As systemd takes it: ${NAME} is put in, $NAME becomes words; TERM ends it with 0."""
    (tmp_path / "keys").write_text("secret\n")
    (line,) = re.findall(r"^ExecStart=(.*)$", (ROOT / "contrib/lluda-serve.service").read_text(), re.MULTILINE)
    line = line.replace("${CREDENTIALS_DIRECTORY}", str(tmp_path)).replace("$LLUDA_OPTIONS", "--port 0 --no-speech")
    program, verb, *options = shlex.split(line)
    assert program.endswith("/bin/lluda") and verb == "serve" and "$" not in line
    with serving(*options) as server:
        assert "with an API key" in server.wait_for("listening on")
        assert "--no-speech" in server.wait_for("voices: none")
        server.wait_for("ready after")
        assert server.get("/v1/models").status_code == 401
        server.signal(signal.SIGTERM)
        assert server.end() == 0


def test_the_container() -> None:
    """Its entry point, and its check of health while that runs."""
    text = (ROOT / "contrib/Dockerfile").read_text().replace("\\\n", "")
    entry, check = (
        json.loads(found) for found in re.findall(r"^(?:ENTRYPOINT|HEALTHCHECK.*CMD) (\[.*\])$", text, re.M)[::-1]
    )
    assert entry[0].endswith("/bin/lluda") and entry[1] == "serve"
    assert check[0].endswith("/bin/python")
    with serving(*entry[2:], "--port", "0") as server:
        here = [sys.executable, *(word.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}") for word in check[1:])]
        assert here != [sys.executable, *check[1:]]
        subprocess.run(here, check=True, timeout=SECONDS)
