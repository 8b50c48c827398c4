"""Running one worker process: its job in, its rows out, and an end to it whatever happens inside."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import IO, Any

import psutil

from lluda.bench.process.job import Job, Sample
from lluda.bench.session import EngineInfo

WORKER = "lluda.bench.process.worker"
BANDWIDTH = "lluda.bench.prediction.bandwidth"

_SHOWN = 20_000
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")


@dataclass(slots=True)
class WorkerResult:
    """What came out: samples (those before a failure too), what was opened, and what went wrong, if anything.

    ``other_load``: processor time that anything else on the machine used meanwhile (other processes, and the hypervisor
    for other guests), as a share of all cores; over a few percent, the samples are not what this machine can do.
    """

    samples: list[Sample] = field(default_factory=list)
    info: EngineInfo | None = None
    error: str | None = None
    other_load: float = 0.0


def run_worker(job: Job, timeout: float, module: str = WORKER, command: Sequence[str] | None = None) -> WorkerResult:
    """Run ``job`` in a process of its own and wait for it, ``timeout`` seconds at most; then it is killed with all its
    children. Never raises for what the worker does: see ``WorkerResult.error``."""
    # -P: a folder named transformers in the working directory must not be imported instead of the package.
    command = command or (sys.executable, "-P", "-m", module)
    environment = os.environ | dict.fromkeys(_THREAD_VARIABLES, str(job.threads))
    busy, own, begun = _busy_seconds(), _children_seconds(), time.monotonic()
    with tempfile.TemporaryFile("w+", errors="replace") as messages:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=messages, text=True, errors="replace",
            env=environment, start_new_session=True,
        )  # fmt: skip
        try:
            rows, error = _converse(process, replace(job, started=begun).to_json(), timeout)
        finally:
            if process.poll() is None:
                _kill_group(process)
        result = WorkerResult()
        complaint = _read_rows(rows, result)
        error = error or complaint
        if process.returncode and error is None:
            error = _exit_reason(process.returncode)
        if error is not None:
            result.error = "; ".join(part for part in (error, _last_line(messages)) if part)
            _show_traceback(messages)
    spent = (time.monotonic() - begun) * (psutil.cpu_count() or 1)
    result.other_load = max(0.0, (_busy_seconds() - busy) - (_children_seconds() - own)) / spent
    return result


def _converse(process: subprocess.Popen[str], job: str, timeout: float) -> tuple[str, str | None]:
    try:
        return process.communicate(job, timeout)[0], None
    except subprocess.TimeoutExpired:
        _kill_group(process)
        return process.communicate()[0], f"stopped after {timeout:.0f} s without an end (--timeout)"


def _kill_group(process: subprocess.Popen[str]) -> None:
    """The worker leads a process group of its own: nothing it started outlives it."""
    # All may be gone already; macOS says PermissionError for a group of zombies.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _read_rows(text: str, result: WorkerResult) -> str | None:
    """Add the worker's lines to ``result``; a complaint about the first that is none of them."""
    for line in text.splitlines():
        try:
            row: dict[str, Any] = json.loads(line)
            if "info" in row:
                result.info = EngineInfo(**row["info"])
            else:
                result.samples.append(Sample(**row))
        except (ValueError, TypeError):
            return f"the worker wrote a line that is no row: {line[:120]!r}"
    return None


def _exit_reason(code: int) -> str:
    if code > 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def _last_line(messages: IO[str]) -> str:
    messages.seek(0)
    lines = [line.strip() for line in messages if line.strip()]
    return lines[-1][:500] if lines else ""


def _show_traceback(messages: IO[str]) -> None:
    """Of a bug of ours or of an engine, whole: the last line alone is in the report."""
    messages.seek(0)
    text = messages.read()
    if "Traceback (most recent call last)" in text:
        print(text[-_SHOWN:], file=sys.stderr)


def _busy_seconds() -> float:
    """Processor seconds that the machine has spent on anything, or lost to other guests of its host, since boot."""
    times = psutil.cpu_times()
    # Linux counts guests in user and nice as well.
    idle = sum(getattr(times, name, 0.0) for name in ("idle", "iowait", "guest", "guest_nice"))
    return float(sum(times) - idle)


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
