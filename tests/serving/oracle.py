"""What must hold after any request, however bad."""

from __future__ import annotations

import re
import time
from typing import Any

import httpx2
import psutil

from tests.serving.running import RunningServer

GOLDEN_BODY = {"prompt": [5, 6, 7, 8], "max_tokens": 6}
_golden: dict[int, list[int]] = {}

_LEAKS = re.compile(rb"0x[0-9a-f]{6,}|Traceback|\.py\b|/root/|/home/|/usr/|/tmp/")
_FIELDS = {"message", "type", "param", "code"}


def check_error(
    response: httpx2.Response, status: int, code: str | None = None, param: str | None = None
) -> dict[str, Any]:
    """The envelope, with nothing in it that only the log may have; gives its fields."""
    assert response.status_code == status, (response.status_code, response.text[:300])
    assert not _LEAKS.search(response.content), response.text
    assert response.headers["x-request-id"]
    error = response.json()["error"]
    assert set(error) == _FIELDS and error["message"]
    if code is not None:
        assert error["code"] == code, error
    if param is not None:
        assert error["param"] == param, error
    return error


def check_well(server: RunningServer) -> None:
    """The server lives, answers as it always did, has ended what it accepted, and holds nothing for it."""
    assert server.get("/health").json() == {"status": "ok"}
    answered = server.post("/example", GOLDEN_BODY)
    assert answered.status_code == 200, answered.text
    ids = answered.json()["ids"]
    assert _golden.setdefault(server.port, ids) == ids
    wait_until_idle(server)
    engine = server.model.engine
    engine.call(engine.check_integrity)
    received, ended = counts(server)
    assert received == ended, f"{received} requests were received, {ended} ended"


def wait_until_idle(server: RunningServer, seconds: float = 10.0) -> None:
    """Until nothing runs or waits; what was cancelled ends within a step."""
    end = time.monotonic() + seconds
    engine, service = server.model.engine, server.service
    while not engine.is_idle or service.admission.running or service.admission.waiting or service.open_requests:
        assert time.monotonic() < end, (engine.stats(), service.admission.running, service.admission.waiting)
        time.sleep(0.002)


def counts(server: RunningServer) -> tuple[float, float]:
    """Requests received, and ended in any way."""
    samples = [sample for family in server.service.metrics.registry.collect() for sample in family.samples]

    def total(name: str) -> float:
        return sum(sample.value for sample in samples if sample.name == name)

    return total("lluda_requests_received_total"), total("lluda_requests_total")


def descriptors() -> int:
    """Open file descriptors of this process."""
    return int(psutil.Process().num_fds())


def threads() -> int:
    """Threads of this process."""
    return int(psutil.Process().num_threads())
