"""The documented cluster, with two nodes of Ray on this machine: contrib/ray-serve.yaml as it is but for the ports."""

from __future__ import annotations

import re
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from lluda.serving.replicas.proxy_middleware import CALLBACK, VARIABLE
from tests.clients.environments import require
from tests.replicas.conftest import ROOT, SECONDS, ray_variables

CONFIG = ROOT / "contrib/ray-serve.yaml"


class Cluster:
    """``proxies``: the addresses of both nodes; `nodes`: their processes, the head first."""

    def __init__(self, folder: Path, temporary: Path) -> None:
        self.ports = {name: _free_port() for name in ("ray", "dashboard", "head", "worker")}
        self.folder, self.temporary = folder, temporary
        self.proxies = [f"http://127.0.0.1:{self.ports[name]}" for name in ("head", "worker")]
        # On machines of their own both proxies have the port of the config.
        self.environment = ray_variables(folder, RAY_SERVE_WORKER_PROXY_HTTP_PORT=str(self.ports["worker"]))
        self.environment |= {VARIABLE: CALLBACK, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.nodes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Two nodes, then the application."""
        head = ["--head", f"--port={self.ports['ray']}", f"--dashboard-port={self.ports['dashboard']}"]
        self._node(*head, f"--temp-dir={self.temporary}")
        self._node(f"--address=127.0.0.1:{self.ports['ray']}")
        self.deploy(CONFIG.read_text())

    def deploy(self, config: str) -> None:
        file = self.temporary / "config.yaml"
        file.write_text(config.replace("port: 8000", f"port: {self.ports['head']}"))
        address = f"http://127.0.0.1:{self.ports['dashboard']}"
        last = time.monotonic() + SECONDS
        while (done := self._run("serve", "deploy", "-a", address, file)).returncode:
            assert time.monotonic() < last, done.stdout + done.stderr  # the dashboard may not be there yet
            time.sleep(1.0)

    def stop(self) -> None:
        for node in reversed(self.nodes):
            node.terminate()
            node.wait(SECONDS)

    def names(self) -> set[str]:
        """The replicas that get requests, as both proxies' users see them; empty: not all answer yet."""
        try:
            texts = [httpx2.get(f"{url}/metrics", timeout=10.0).text for url in self.proxies]
        except httpx2.HTTPError:
            return set()
        found = [set(re.findall(r'lluda_requests_running\{replica="(\w+)"\}', text)) for text in texts]
        return found[0] if found[0] == found[1] else set()

    def wait_for(self, count: int, without: frozenset[str] = frozenset()) -> set[str]:
        last = time.monotonic() + SECONDS
        while len(names := self.names()) != count or names & without:
            assert time.monotonic() < last, f"{names} get requests; {count} other than {set(without)} should"
            time.sleep(0.5)
        return names

    def _node(self, *arguments: str) -> None:
        command = [
            str(self.folder / "bin/ray"),
            "start",
            "--block",
            "--num-cpus=1",
            "--disable-usage-stats",
            *arguments,
        ]
        log = (self.temporary / f"node{len(self.nodes)}.log").open("wb")
        self.nodes.append(subprocess.Popen(command, env=self.environment, stdout=log, stderr=subprocess.STDOUT))
        _wait_for_port(self.ports["ray"])

    def _run(self, command: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        whole = [str(self.folder / "bin" / command), *map(str, arguments)]
        return subprocess.run(
            whole, env=self.environment, capture_output=True, text=True, check=False, timeout=SECONDS, cwd=ROOT
        )


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    folder = require("ray")
    temporary = Path(tempfile.mkdtemp(prefix="ray"))  # a short name: sockets lie in it
    running = Cluster(folder, temporary)
    try:
        running.start()
        yield running
    finally:
        running.stop()
        shutil.rmtree(temporary, ignore_errors=True)


def test_two_nodes_answer_as_one(cluster: Cluster) -> None:
    assert len(cluster.wait_for(2)) == 2, "each node has one CPU, and each replica takes one"
    body = {"model": "tiny-omni", "modalities": ["text", "audio"], "audio": {"voice": "lark", "format": "wav"}}
    makers = []
    for number in range(6):
        question = [{"role": "user", "content": f"What is two plus {number}?"}]
        answers = [
            httpx2.post(f"{url}/v1/chat/completions", json=body | {"messages": question}, timeout=60.0).json()
            for url in cluster.proxies
        ]
        made = {one["choices"][0]["message"]["audio"]["id"].partition(".")[0] for one in answers}
        assert len(made) == 1, "both proxies know where a conversation belongs"
        makers += made
    assert len(set(makers)) == 2


def test_another_revision_restarts_the_replicas(cluster: Cluster) -> None:
    before = cluster.wait_for(2)
    cluster.deploy(CONFIG.read_text().replace('revision: "1"', 'revision: "2"'))
    cluster.wait_for(2, without=frozenset(before))


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


def _wait_for_port(port: int) -> None:
    last = time.monotonic() + SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1.0).close()
            return
        except OSError:
            assert time.monotonic() < last
            time.sleep(0.2)
