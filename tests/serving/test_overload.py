"""Ten times what the server can do (E1), and mixed traffic with bad requests and clients that leave (E17). The slow
ones are the same for minutes, with bars."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import psutil
import pytest

from lluda.serving.limits import Limits
from tests.serving.asking import wait_for
from tests.serving.oracle import check_well, counts, descriptors, threads, wait_until_idle
from tests.serving.running import RunningServer, running_server
from tests.serving.traffic import Elsewhere, Tally, closed_loop, mixed, open_loop

LIMITS = Limits(running=4, waiting=8)
SHORT = {"prompt": [5, 6, 7, 8], "max_tokens": 150}
USUAL = {"prompt": [5, 6, 7, 8], "max_tokens": 400}
"""As long as answers are; refusing ten times as many takes the loop 0.75 ms each."""


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Elsewhere]:
    """Who makes the traffic."""
    process = Elsewhere()
    try:
        yield process
    finally:
        process.close()


def capacity(elsewhere: Elsewhere, server: RunningServer, body: dict[str, Any], seconds: float) -> float:
    """Good answers a second of as many clients as may run."""
    closed = elsewhere.run(closed_loop, server.port, "/example", body, LIMITS.running, seconds)
    return closed.statuses[200] / seconds


def check_overload(server: RunningServer, tally: Tally) -> None:
    assert set(tally.statuses) <= {200, 429} and tally.statuses[429] > tally.statuses[200] > 0
    assert tally.without_retry == 0
    longest = max(tally.seconds) / (sum(tally.seconds) / len(tally.seconds))
    assert longest < 10, "who was admitted was served in turn"
    check_well(server)


def test_ten_times_the_capacity_is_answered_429(elsewhere: Elsewhere) -> None:
    with running_server(limits=LIMITS) as server:
        capacity(elsewhere, server, SHORT, 0.5)
        most = capacity(elsewhere, server, SHORT, 2)
        tally = elsewhere.run(open_loop, server.port, "/example", SHORT, 10 * most, 2)
        check_overload(server, tally)
        assert tally.statuses[200] / 2 > most / 5, "the refusals take the time of the answers"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_times_the_capacity_for_five_minutes(elsewhere: Elsewhere) -> None:
    """In one piece, the capacity measured before and after: others may use the machine, too."""
    with running_server(limits=LIMITS) as server:
        capacity(elsewhere, server, USUAL, 2)
        before, most = resident(), [capacity(elsewhere, server, USUAL, 15)]
        tally = elsewhere.run(open_loop, server.port, "/example", USUAL, 10 * most[0], 300)
        most.append(capacity(elsewhere, server, USUAL, 15))
        check_overload(server, tally)
        good = tally.statuses[200] / 300
        print(f"capacity {most}, goodput {good} a second, {tally.statuses}, {before:.0f} to {resident():.0f} MB")
        assert good >= 0.9 * sum(most) / 2
        assert resident() - before < 20


def soak(elsewhere: Elsewhere, server: RunningServer, seconds: float, pieces: int = 1) -> list[float]:
    """Megabytes of this process after each piece, what is free given back; asserts that nothing is left behind."""
    elsewhere.run(mixed, server.port, 8, max(1.0, seconds / 5), 0)  # what is made once is made now
    wait_until_idle(server)
    before, megabytes = (descriptors(), threads()), [resident()]
    for piece in range(pieces):
        tally = elsewhere.run(mixed, server.port, 8, seconds / pieces, 1 + piece)
        wait_until_idle(server)
        assert set(tally.statuses) <= {0, 200, 400, 404}, tally.statuses
        assert tally.statuses[200] > tally.statuses[400] > 0
        megabytes.append(resident())
    wait_for(lambda: (descriptors(), threads()) <= tuple(n + 2 for n in before))
    stats = server.model.engine.stats()
    assert stats.submitted == stats.done + stats.cancelled + stats.failed and stats.kv_positions == 0
    check_well(server)
    return megabytes


def resident() -> float:
    """Megabytes that are held, without those that the allocator keeps for later."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return psutil.Process().memory_info().rss / 1e6


def test_mixed_traffic_leaves_nothing_behind(elsewhere: Elsewhere) -> None:
    with running_server() as server:
        soak(elsewhere, server, 4)


@pytest.mark.slow
@pytest.mark.timeout(60 * 60 * 7)
def test_mixed_traffic_for_minutes(elsewhere: Elsewhere) -> None:
    """As many as the environment's SOAK_MINUTES says (5)."""
    minutes = float(os.environ.get("SOAK_MINUTES", "5"))
    with running_server() as server:
        megabytes = soak(elsewhere, server, 60 * minutes, pieces=max(10, round(2 * minutes)))
        slope = float(np.polyfit(np.linspace(0, minutes, len(megabytes)), megabytes, 1)[0])
        answered, stats = counts(server)[1], server.model.engine.stats()
        print(f"{minutes:g} minutes, {answered:.0f} requests that were admitted, {stats}")
        print(f"{slope:.3f} MB a minute: {[round(one, 1) for one in megabytes]}")
        third, half = len(megabytes) // 3, len(megabytes) // 2  # until then buffers grow to what large requests take
        assert max(megabytes[half:]) < max(megabytes[third:half]) + 2
