"""How a server ends (E7): no new requests, those that run get their time, then an error."""

from __future__ import annotations

import json

import pytest

from lluda.serving.limits import Limits
from tests.serving.asking import LONG, ask, wait_for
from tests.serving.oracle import GOLDEN_BODY, check_error
from tests.serving.running import RunningServer, read_all, running_server

QUARTER = {"prompt": [5, 6, 7, 8], "max_tokens": 300}


def stop_while_it_runs(server: RunningServer) -> None:
    wait_for(lambda: server.model.engine.stats().running == 1)
    server.server.stop()
    wait_for(lambda: server.service.state.value == "draining")


def test_what_runs_may_end_and_nothing_begins() -> None:
    with running_server() as server, ask(server, QUARTER) as unary:
        stop_while_it_runs(server)
        refused = server.post("/example", GOLDEN_BODY)
        check_error(refused, 503, "draining")
        assert refused.headers["retry-after"]
        check_error(server.get("/ready"), 503, "draining")
        assert server.get("/health").status_code == 200
        body = read_all(unary).partition(b"\r\n\r\n")[2]
        assert len(json.loads(body)["ids"]) == QUARTER["max_tokens"]


def test_at_the_deadline_an_error_ends_what_runs() -> None:
    with running_server(limits=Limits(drain_seconds=0.2)) as server:
        with ask(server, LONG | {"stream": True}) as stream, ask(server, LONG) as waiting:
            wait_for(lambda: server.model.engine.stats().running == 2)
            server.server.stop()
            streamed, unary = read_all(stream), read_all(waiting)
        assert b'"code":"draining"' in streamed and b"[DONE]" not in streamed and streamed.endswith(b"0\r\n\r\n")
        assert unary.startswith(b"HTTP/1.1 503") and b'"code":"draining"' in unary
        stats = server.model.engine.stats()
        assert stats.cancelled == 2 and stats.running == stats.waiting == 0


def test_client_that_reads_nothing_does_not_hold_up_the_end(caplog: pytest.LogCaptureFixture) -> None:
    stalled = LONG | {"stream": True, "filling": 20_000}
    with running_server(limits=Limits(drain_seconds=0.2)) as server, ask(server, stalled):
        stop_while_it_runs(server)
        wait_for(server.service.ended.is_set, 60)
    assert "ERROR" not in caplog.text and "Traceback" not in caplog.text


def test_clocks_that_jump_change_nothing(monkeypatch) -> None:
    """Only monotonic time counts (E15)."""
    import time

    with running_server(limits=Limits(queue_seconds=5, request_seconds=20)) as server:
        real = time.time
        expected = server.post("/example", QUARTER).json()
        for hours in (1, -1):
            with monkeypatch.context() as patch:
                patch.setattr(time, "time", lambda hours=hours: real() + 3600 * hours)
                assert server.post("/example", QUARTER).json() == expected
                assert server.get("/health").status_code == 200
