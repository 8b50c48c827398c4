"""A worker may do anything: crash, hang, write rubbish, leave children behind. The parent reports and goes on."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil
import pytest

from lluda.bench.process.job import Job, Sample
from lluda.bench.process.supervisor import WorkerResult, run_worker
from tests.conftest import watchdog

JOB = Job(engine="lluda", model="m", threads=1)
ROW = 'print(\'{"test": "pp8", "value": 2.5, "unit": "tok/s"}\', flush=True)'


def run(code: str, timeout: float = 30.0) -> WorkerResult:
    return run_worker(JOB, timeout, command=(sys.executable, "-c", f"import os, sys, time\n{code}"))


def require_gone(pid: int) -> None:
    for _ in range(50):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return
        except psutil.NoSuchProcess:
            return
        time.sleep(0.1)
    raise AssertionError(f"process {pid} is still there")


def test_rows_and_info_are_read() -> None:
    info = 'print(\'{"info": {"format": "BF16", "bytes_per_weight": 2.0, "settings": "s"}}\')'
    result = run(f"{info}\n{ROW}")
    assert result.error is None
    assert result.samples == [Sample("pp8", 2.5, "tok/s")]
    assert result.info is not None
    assert result.info.bytes_per_weight == 2.0
    assert 0.0 <= result.other_load <= 1.5


def test_the_job_comes_on_stdin_with_the_start_and_the_threads_are_set() -> None:
    code = """
import json
job = json.load(sys.stdin)
ok = 0 <= time.monotonic() - job["started"] < 30 and os.environ["OMP_NUM_THREADS"] == "1"
print(json.dumps({"test": job["model"], "value": float(ok), "unit": ""}))
"""
    assert run(code).samples == [Sample("m", 1.0, "")]


def test_a_crash_is_reported_with_its_last_line_and_keeps_earlier_rows() -> None:
    result = run(f"{ROW}\nprint('first', file=sys.stderr)\nprint('out of luck', file=sys.stderr)\nsys.exit(3)")
    assert result.error == "exit code 3; out of luck"
    assert [sample.test for sample in result.samples] == ["pp8"]


def test_a_bug_is_shown_whole(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("raise KeyError('a bug')").error == "exit code 1; KeyError: 'a bug'"
    assert "Traceback (most recent call last)" in capfd.readouterr().err


def test_a_death_by_signal_is_named() -> None:
    result = run("os.kill(os.getpid(), 11)")
    assert result.error is not None
    assert "SIGSEGV" in result.error


def test_a_hang_ends_at_the_timeout_with_all_its_children() -> None:
    child = "import subprocess; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    code = f"{child}\nprint(p.pid, file=sys.stderr, flush=True)\n{ROW}\ntime.sleep(60)"
    with watchdog(4):
        result = run(code, timeout=3.0)
    assert result.error is not None
    assert result.error.startswith("stopped after 3 s")
    assert [sample.test for sample in result.samples] == ["pp8"]
    require_gone(int(result.error.rsplit(" ", 1)[1]))


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_worker_ends_when_its_parent_is_killed() -> None:
    code = """
import os, time
from lluda.bench.process.worker import die_with_parent
ready, tell = os.pipe()
pid = os.fork()
if pid == 0:
    die_with_parent()
    os.write(tell, b"x")
    time.sleep(60)
os.read(ready, 1)
print(pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen((sys.executable, "-c", code), stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert psutil.pid_exists(worker)
        parent.kill()
    require_gone(worker)


@pytest.mark.parametrize("line", ["hello", "[1]", '{"test": "pp8"}', "7"])
def test_a_line_that_is_no_row_is_an_error(line: str) -> None:
    result = run(f"print('''{line}''')")
    assert result.error is not None
    assert "no row" in result.error
