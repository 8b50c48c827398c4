"""Replicas of tiny-omni on this machine, in the environment with Ray (make test-replicas)."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import psutil
import pytest

from tests.clients.environments import require, variables

ROOT = Path(__file__).parents[2]
SECONDS = 240.0
"""For Ray and three replicas to start on a busy machine."""


class Replicas:
    """``lluda serve --replicas`` on a free port."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process, self.url = process, url
        self.client = httpx2.Client(base_url=url, timeout=60.0)

    def pids(self) -> set[int]:
        """The processes of replicas, those that start or end among them."""
        found = set()
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if "ServeReplica" in " ".join(child.cmdline()):
                    found.add(child.pid)
            except psutil.NoSuchProcess:
                continue
        return found

    def running(self) -> dict[str, int]:
        """Of replicas that get requests, by their numbers: what each has admitted."""
        lines = self.client.get("/metrics").text.splitlines()
        found = [line.split('"') for line in lines if line.startswith("lluda_requests_running{")]
        return {name: int(float(value.strip("} "))) for _, name, value in found}

    def names(self) -> set[str]:
        """The numbers of replicas that get requests."""
        return set(self.running())

    def wait_for_names(self, count: int, without: set[str] = frozenset()) -> set[str]:  # type: ignore[assignment]
        """Until exactly so many get requests, none of them in ``without``."""
        last = time.monotonic() + SECONDS
        while len(names := self.names()) != count or names & without:
            assert time.monotonic() < last, f"{names} get requests; {count} other than {without} should"
            time.sleep(0.2)
        return names

    def restart(self) -> None:
        self.process.send_signal(signal.SIGUSR1)


def ray_variables(folder: Path, **more: str) -> dict[str, str]:
    """The environment of a process with Ray, which imports lluda from this checkout."""
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    return variables(PATH=path, PYTHONPATH=str(ROOT / "src"), RAY_DEDUP_LOGS="0", **more)


@contextmanager
def running_replicas(tmp_path: Path, count: int | str, *arguments: str) -> Iterator[Replicas]:
    folder = require("ray")
    log = tmp_path / "serve.log"
    command = [str(folder / "bin/python"), "-m", "lluda.cli.main", "serve", "-m", "tiny-omni", "--port", "0"]
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, "--replicas", str(count), *arguments],
            env=ray_variables(folder),
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield Replicas(process, _address(process, log))
        finally:
            process.terminate()
            process.wait(SECONDS)


def _address(process: subprocess.Popen[str], log: Path) -> str:
    last = time.monotonic() + SECONDS
    while True:
        text = log.read_text(errors="replace")
        for line in text.splitlines():
            if "ready on http" in line:
                return next(word for word in line.split() if word.startswith("http"))
        assert process.poll() is None and time.monotonic() < last, text[-4000:]
        time.sleep(0.2)


@pytest.fixture(scope="session")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    """Three of them."""
    with running_replicas(tmp_path_factory.mktemp("replicas"), 3) as running:
        yield running
