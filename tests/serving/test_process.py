"""The life of the process (E6 to E8, E10, E12, E16, E18): start, signals, a dead engine, a poor environment."""

from __future__ import annotations

import os
import resource
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx2
import psutil
import pytest

from lluda.errors import InvalidRequest, LludaError
from lluda.serving.http.listener import addresses, listen
from tests.serving.processes import SECONDS, ServerProcess, serving

FREE = ("--port", "0")
STEPS_SLOWLY = """
import time
from lluda.engine import runner
fast = runner.Runner.step
def step(self, *arguments):
    time.sleep(0.02)
    return fast(self, *arguments)
runner.Runner.step = step
runner.Runner.launches_whole = lambda self, rows: False
"""
SPEAKS_LONG = {"model": "tiny-omni", "prompt": "one", "max_tokens": 100, "ignore_eos": True, "stream": True}


def is_free(port: int) -> bool:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):
            one.bind(("127.0.0.1", port))
            return True
    return False


def children_end(children: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(children, timeout=10)[1]


def test_poor_environment_and_end_by_sigterm(tmp_path: Path) -> None:
    """No HOME, no place for temporary files, another encoding, a working directory that cannot be written."""
    home = tmp_path / "home"
    home.mkdir(mode=0o500)
    env = {"HOME": None, "TMPDIR": str(tmp_path / "none"), "LC_ALL": "C", "LANG": None, "HF_HOME": str(home / "hub")}
    with serving(*FREE, env=env, cwd=home) as server:
        server.wait_for("ready after")
        assert server.get("/ready").json() == {"status": "ready"}
        messages = [{"role": "user", "content": "What is one plus one? Ä"}]
        asked = httpx2.post(
            f"{server.url}/v1/chat/completions",
            json={"model": "tiny-omni", "messages": messages, "max_tokens": 4},
            timeout=SECONDS,
        )
        assert asked.status_code == 200, asked.text
        children, port = psutil.Process(server.process.pid).children(recursive=True), server.port
        server.signal(signal.SIGTERM)
        assert server.end() == 0
        assert children_end(children) and is_free(port)


def test_killed_server_starts_again_on_its_port_and_two_signals_end_it_at_once() -> None:
    """The first one's log goes to a disk that is full."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    with serving("--port", str(port), before="import os\nos.dup2(os.open('/dev/full', os.O_WRONLY), 2)") as first:
        end = time.monotonic() + SECONDS
        while not answers(port):
            assert time.monotonic() < end and first.process.poll() is None
            time.sleep(0.05)
        children = psutil.Process(first.process.pid).children(recursive=True)
        first.signal(signal.SIGKILL)
        first.end()
        assert children_end(children), "processes without a parent"
    with serving("--port", str(port), before=STEPS_SLOWLY) as second:
        second.wait_for("ready after")
        with httpx2.stream(
            "POST", f"{second.url}/v1/completions", json=SPEAKS_LONG | {"max_tokens": 1000}, timeout=SECONDS
        ) as response:
            lines = response.iter_lines()
            next(lines)
            second.signal(signal.SIGTERM)
            wait_until_refused(second)
            second.signal(signal.SIGTERM)
            assert second.end() == 128 + signal.SIGTERM


def answers(port: int) -> bool:
    """Whether a server that says nothing is ready."""
    with suppress(httpx2.TransportError):
        return httpx2.get(f"http://127.0.0.1:{port}/ready", timeout=SECONDS).status_code == 200
    return False


def wait_until_refused(server: ServerProcess) -> httpx2.Response:
    """The answer to a request that comes while the server drains."""
    end = time.monotonic() + SECONDS
    while server.get("/health?verbose=true").json()["state"] == "ready":
        assert time.monotonic() < end
    return httpx2.post(f"{server.url}/v1/completions", json=SPEAKS_LONG, timeout=SECONDS)


def test_signal_while_it_loads() -> None:
    slow = "import lluda.api.model, time\nlluda.api.model.load = lambda *a, **k: time.sleep(1000)"
    with serving(*FREE, before=slow) as server:
        server.wait_for("Started server process")
        assert server.get("/health").status_code == 200
        waiting = server.get("/ready")
        assert waiting.status_code == 503 and waiting.json()["error"]["code"] == "loading"
        loading = server.get("/v1/models")
        assert loading.status_code == 503 and loading.json()["error"]["code"] == "loading"
        server.signal(signal.SIGINT)
        assert server.end() == 0


def test_step_that_hangs_ends_the_process_with_all_stacks_in_the_log() -> None:
    hangs = """
import time
from lluda.engine import runner
runner.Runner.step = runner.Runner.argmax_step = lambda *a, **k: time.sleep(1000)
"""
    with serving(*FREE, "--limit", "step_seconds=1", before=hangs) as server:
        server.wait_for("ready after")
        asked = httpx2.post(f"{server.url}/v1/completions", json=SPEAKS_LONG | {"stream": False}, timeout=SECONDS)
        assert asked.status_code == 503 and asked.json()["error"]["code"] == "engine_dead"
        assert asked.headers["x-should-retry"] == "false"
        assert server.end() == 1
        assert "a step of the engine takes longer than 1 s" in server.said
        assert "time.sleep" in server.said or "lluda engine" in server.said or "Thread 0x" in server.said


def test_step_that_takes_for_ever_does_not_hold_up_the_end() -> None:
    slow = """
import time
from lluda.engine import runner
runner.Runner.step = runner.Runner.argmax_step = lambda *a, **k: time.sleep(1000)
"""
    with serving(*FREE, "--limit", "drain_seconds=0.2", before=slow) as server:
        server.wait_for("ready after")
        with ThreadPoolExecutor(1) as threads:
            url = f"{server.url}/v1/completions"
            asked = threads.submit(httpx2.post, url, json=SPEAKS_LONG | {"stream": False}, timeout=SECONDS)
            while server.get("/health?verbose=true").json()["running"] == 0:
                time.sleep(0.01)
            server.signal(signal.SIGTERM)
            assert asked.result().json()["error"]["code"] == "draining"
        assert server.end() == 0


def test_lost_device_ends_the_process() -> None:
    lost = """
from lluda.backends.backend import ComputeBackend
from lluda.engine import runner
def step(*arguments, **options):
    raise RuntimeError("CUDA error: an illegal memory access was encountered")
runner.Runner.step = runner.Runner.argmax_step = step
import lluda.backends.cpu.backend as cpu, lluda.backends.reference.backend as reference
ComputeBackend.is_lost = lambda self: True
"""
    with serving(*FREE, before=lost) as server:
        server.wait_for("ready after")
        asked = httpx2.post(f"{server.url}/v1/completions", json=SPEAKS_LONG | {"stream": False}, timeout=SECONDS)
        assert asked.status_code in (500, 503) and "illegal" not in asked.text
        with suppress(httpx2.TransportError):
            assert server.get("/health").status_code == 503
        assert server.end() == 1
        assert "the engine broke" in server.said


def test_model_that_cannot_be_loaded_is_one_line(tmp_path: Path) -> None:
    with serving(*FREE, "-m", str(tmp_path / "none")) as server:
        assert server.end() == 2
        assert "none" in server.said.splitlines()[-1] and "Traceback" not in server.said


def test_port_in_use_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(LludaError, match=rf"port {port} of 127\.0\.0\.1 is in use .* --port {port + 1}"):
            listen("127.0.0.1", port)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1", "a" * 300, "\x00"])
def test_host_that_is_not_this_machine(host: str) -> None:
    with pytest.raises(InvalidRequest, match="no address of this machine"):
        listen(host, 0)


def test_port_without_leave() -> None:
    if os.geteuid() == 0:
        pytest.skip("nothing is read-only for root: it may use any port")
    with pytest.raises(LludaError, match="from 1024 on"):
        listen("127.0.0.1", 80)


def test_ipv6() -> None:
    try:
        sockets = listen("::1", 0)
    except InvalidRequest:
        assert not socket.has_ipv6 or not Path("/proc/net/if_inet6").read_text().strip()
        return
    assert addresses(sockets)[0].startswith("http://[::1]:")
    for one in sockets:
        one.close()


def test_few_file_descriptors_mean_few_connections() -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup, which the tests may run under, has it ignored

    with serving(*FREE, preexec_fn=limit) as server:
        assert "128 connections" in server.wait_for("limits:")
        server.wait_for("ready after")
        held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(400)]
        try:
            refused = b""
            while part := held[-1].recv(1 << 16):
                refused += part
            assert refused.startswith(b"HTTP/1.1 503") and b"too_many_connections" in refused
        finally:
            for one in held:
                one.close()
        end = time.monotonic() + SECONDS
        while True:
            with suppress(httpx2.TransportError):
                if server.get("/health").status_code == 200:
                    break
            assert time.monotonic() < end
        server.signal(signal.SIGHUP)
        assert server.end() == 0
