"""Who may run, who waits, who is refused; and what becomes of those whose client leaves (E4)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from lluda.serving.admission import Admission
from lluda.serving.http.errors import ApiError
from lluda.serving.limits import Limits
from tests.conftest import watchdog
from tests.serving.asking import LONG, ask, outcomes, wait_for
from tests.serving.oracle import GOLDEN_BODY, check_error, check_well, wait_until_idle
from tests.serving.running import RunningServer, read_all, running_server


@pytest.fixture(scope="module")
def small() -> Iterator[RunningServer]:
    """One sequence runs, two wait for half a second."""
    with running_server(limits=Limits(running=1, waiting=2, queue_seconds=0.5)) as running:
        yield running


async def hold(admission: Admission, sequences: int, order: list[str], name: str, free: asyncio.Event) -> None:
    async with admission.place(sequences):
        order.append(name)
        await free.wait()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_first_come_first_served() -> None:
    """One that needs more places is not overtaken by those that need fewer."""

    async def run() -> None:
        admission, order = Admission(Limits(running=2, waiting=4)), []
        free = {name: asyncio.Event() for name in "abcd"}
        tasks = [
            asyncio.create_task(hold(admission, sequences, order, name, free[name]))
            for name, sequences in (("a", 1), ("b", 2), ("c", 1))
        ]
        await settle()
        assert order == ["a"] and admission.waiting == 3
        free["a"].set()
        await settle()
        assert order == ["a", "b"] and admission.running == 2
        free["b"].set()
        free["c"].set()
        await asyncio.gather(*tasks)
        assert order == ["a", "b", "c"] and admission.running == admission.waiting == 0

    asyncio.run(run())


def test_who_leaves_the_line_makes_room() -> None:
    async def run() -> None:
        admission, order, free = Admission(Limits(running=1, waiting=2)), [], asyncio.Event()
        tasks = [asyncio.create_task(hold(admission, 1, order, name, free)) for name in "abc"]
        await settle()
        with pytest.raises(ApiError) as refused:
            async with admission.place(1):
                pass
        assert refused.value.status == 429 and int(refused.value.headers["retry-after"]) > 0
        tasks[1].cancel()
        await settle()
        tasks.append(asyncio.create_task(hold(admission, 1, order, "d", free)))
        await settle()
        free.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order == ["a", "c", "d"] and admission.running == admission.waiting == 0

    asyncio.run(run())


def test_cancelled_in_the_moment_of_admission_gives_the_place_back() -> None:
    async def run() -> None:
        admission, order, free = Admission(Limits(running=1, waiting=2)), [], asyncio.Event()
        first = asyncio.create_task(hold(admission, 1, order, "a", free))
        second = asyncio.create_task(hold(admission, 1, order, "b", free))
        await settle()
        free.set()
        while admission.waiting:
            await asyncio.sleep(0)
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        assert admission.running == 0

    asyncio.run(run())


def test_full_line_is_429_with_the_time_to_come_back(small: RunningServer) -> None:
    with ExitStack() as stack:
        stack.enter_context(ask(small, LONG))
        wait_for(lambda: small.service.admission.running == 1)
        for _ in range(2):
            stack.enter_context(ask(small, LONG))
        wait_for(lambda: small.service.admission.waiting == 2)
        refused = small.post("/example", GOLDEN_BODY)
        error = check_error(refused, 429, "queue_full")
        assert error["type"] == "rate_limit_error" and int(refused.headers["retry-after"]) > 0
        check_error(small.post("/example", GOLDEN_BODY | {"stream": True}), 429, "queue_full")
        assert small.get("/health").status_code == 200
    check_well(small)


def test_too_long_in_line_is_503(small: RunningServer) -> None:
    with ask(small, LONG):
        wait_for(lambda: small.service.admission.running == 1)
        with watchdog(2):
            response = small.post("/example", GOLDEN_BODY)
        check_error(response, 503, "queue_timeout")
        assert response.headers["retry-after"]
    check_well(small)


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_the_line(small: RunningServer, stream: bool) -> None:
    with ask(small, LONG):
        wait_for(lambda: small.service.admission.running == 1)
        before = small.model.engine.stats().submitted
        with ask(small, LONG | {"stream": stream}):
            wait_for(lambda: small.service.admission.waiting == 1)
        wait_for(lambda: small.service.admission.waiting == 0)
        assert small.model.engine.stats().submitted == before, "it never came to the engine"
    check_well(small)


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
@pytest.mark.parametrize("prompt", [4, 4000], ids=["while it decodes", "while its prompt is computed"])
def test_leaving_cancels_within_a_step(server: RunningServer, stream: bool, prompt: int) -> None:
    before, cancelled = outcomes(server).get("cancelled", 0), server.model.engine.stats().cancelled
    body = {"prompt": [5, 6, 7, 8] * (prompt // 4), "max_tokens": 4090 - prompt, "stream": stream}
    with ask(server, body):
        wait_for(lambda: server.model.engine.stats().running == 1)
    with watchdog(0.25):
        wait_until_idle(server)
    assert server.model.engine.stats().cancelled == cancelled + 1
    assert outcomes(server)["cancelled"] == before + 1
    check_well(server)


def test_request_that_takes_too_long_is_ended() -> None:
    with running_server(limits=Limits(request_seconds=1)) as hasty:
        with watchdog(3):
            response = hasty.post("/example", LONG | {"prompt": [5] * 90})
            check_error(response, 503, "request_timeout")
        assert response.headers["x-should-retry"] == "false"
        with watchdog(3):
            streamed = hasty.post("/example", LONG | {"stream": True})
        *tokens, last = streamed.text.split("\n\n")[:-1]
        assert tokens and "request_timeout" in last and "[DONE]" not in streamed.text
        check_well(hasty)


def stands_still(server: RunningServer) -> bool:
    """Whether the engine has nothing to do for a while."""
    steps = server.model.engine.stats().steps
    time.sleep(0.1)
    return server.model.engine.stats().steps == steps


def test_client_that_reads_nothing_is_left_after_a_while() -> None:
    """Its request stands still meanwhile, and the engine works for others (E5)."""
    with running_server(limits=Limits(write_stall_seconds=1)) as patient:
        before = patient.model.engine.stats().cancelled
        body = {"prompt": [5, 6, 7, 8], "max_tokens": 4000, "stream": True, "filling": 10_000}
        with ask(patient, body) as stalled:
            wait_for(lambda: patient.model.engine.stats().running == 1)
            wait_for(lambda: stands_still(patient))
            steps = patient.model.engine.stats().steps
            assert patient.post("/example", GOLDEN_BODY).status_code == 200
            assert patient.model.engine.stats().steps - steps < 30, "the stalled request went on"
            wait_until_idle(patient)
            assert patient.model.engine.stats().cancelled == before + 1
            with suppress(OSError):
                assert not read_all(stalled).endswith(b"0\r\n\r\n"), "what broke off must not look complete"
        check_well(patient)
