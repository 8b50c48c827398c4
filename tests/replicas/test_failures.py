"""A replica that is killed, and a rolling restart, both while callers ask."""

from __future__ import annotations

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai

from tests.replicas.conftest import SECONDS, Replicas, running_replicas
from tests.replicas.load import callers

ENDS_SECONDS, SERVES_SECONDS = 10.0, 2.0


def test_killed_replica_costs_only_what_it_had(replicas: Replicas) -> None:
    before = replicas.wait_for_names(3)
    with callers(replicas.url, 12) as load:
        load.wait_for(40)
        victim = min(replicas.pids())
        while min((running := replicas.running()).values()) < 2:
            assert len(load.failures) == 0
        killed = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        load.wait_for(100, since=killed)
        after = before
        while after == before:
            after = replicas.wait_for_names(3)
        load.wait_for(len(load.asked) + 20)
    caught = [one for one in load.asked if one.began < killed < one.ended]
    assert max(one.ended for one in caught) - killed < ENDS_SECONDS
    assert [one for one in load.since(killed + SERVES_SECONDS) if one.failure] == []
    assert len(after - before) == 1
    told = [one.failure for one in load.failures]
    assert all("replica_lost" in one or "RemoteProtocolError" in one or "ReadError" in one for one in told), told
    noted = {
        "requests": len(load.asked),
        "the_killed_had": [running[name] for name in before - after],
        "failed": len(load.failures),
        "last_failure_began_s": max((one.began - killed for one in load.failures), default=None),
        "all_under_way_ended_s": max(one.ended for one in caught) - killed,
        "slowest_after_s": max(one.seconds for one in load.since(killed)),
    }
    print(json.dumps({"killed": noted}))


def test_rolling_restart_fails_no_request(replicas: Replicas) -> None:
    before = replicas.wait_for_names(3)
    with ThreadPoolExecutor(3) as threads, callers(replicas.url, 4) as load:
        sessions = [threads.submit(_session_until_closed, replicas.url) for _ in range(3)]
        load.wait_for(20)
        restarted = time.monotonic()
        replicas.restart()
        replicas.wait_for_names(3, without=before)
        load.wait_for(20, since=time.monotonic())
        said = [one.result(60) for one in sessions]
    assert load.failures == []
    assert len(load.since(restarted)) > 40
    assert said == [("draining", 1001)] * 3, "idle sessions are told, and closed as by a server that goes"
    slowest = max(one.seconds for one in load.since(restarted))
    print(json.dumps({"restarted": {"requests": len(load.asked), "failed": 0, "slowest_s": slowest}}))


def test_sigterm_waits_for_what_runs(tmp_path: Path) -> None:
    body = {"model": "tiny-omni", "messages": [{"role": "user", "content": "Spell the word elephant."}]}
    with running_replicas(tmp_path, 1) as alone:
        options = {"stream": True, "max_tokens": 900, "ignore_eos": True}
        with alone.client.stream("POST", "/v1/chat/completions", json=body | options) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data: ")
            alone.process.terminate()
            *_, last = (line for line in lines if line)
        assert last == "data: [DONE]"
        assert alone.process.wait(SECONDS) == 0


def _session_until_closed(url: str) -> tuple[str | None, int]:
    """The last error that the session was told, and the code it was closed with."""
    told = None
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    with client.realtime.connect(model="tiny-omni") as connection:
        try:
            while True:
                event = connection.recv()
                if event.type == "error":
                    told = event.error.code
        except Exception as error:
            received = getattr(error, "rcvd", None)
            return told, received.code if received is not None else 0
