"""Events on their way from the engine to a reader."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest

from lluda.engine.request import Token
from lluda.engine.stream import Channel, Stream


def token(number):
    return Token(0, number, "")


def made(requests=1, capacity=4):
    woken = []
    channel = Channel(requests, lambda: woken.append(1), capacity)
    return channel, Stream(channel, None), woken


def test_events_come_in_order_and_end_with_the_last_request():
    channel, stream, _ = made(requests=2)
    channel.put(token(1))
    channel.end()
    channel.put(token(2))
    channel.end()
    assert [event.id for event in stream] == [1, 2]
    assert list(stream) == []


def test_an_error_comes_after_the_events_before_it_and_once():
    channel, stream, _ = made()
    channel.put(token(1))
    channel.end(RuntimeError("it broke"))
    assert next(stream).id == 1
    with pytest.raises(RuntimeError, match="it broke"):
        next(stream)
    assert list(stream) == []


def test_a_reader_that_makes_room_wakes_the_engine():
    channel, stream, woken = made(capacity=2)
    channel.put(token(1))
    assert not channel.is_full
    channel.put(token(2))
    assert channel.is_full
    next(stream)
    assert (channel.is_full, woken) == (False, [1])


def test_a_reader_waits_for_what_comes_from_another_thread():
    channel, stream, _ = made()
    thread = threading.Timer(0.02, lambda: (channel.put(token(5)), channel.end()))
    thread.start()
    assert [event.id for event in stream] == [5]


def test_a_reader_may_give_up_waiting():
    _, stream, _ = made()
    with pytest.raises(TimeoutError, match=r"within 0\.01 s"):
        stream.get(timeout=0.01)


@pytest.mark.parametrize("how", ["close", "cancel", "with", "drop"])
def test_whoever_wants_no_more_cancels(how):
    channel, stream, woken = made()
    if how == "with":
        with stream:
            pass
    elif how == "drop":
        del stream
        gc.collect()
    else:
        getattr(stream, how)()
    assert (channel.cancelled, woken) == (True, [1])


def test_what_has_ended_is_not_cancelled():
    channel, stream, woken = made()
    channel.end()
    stream.close()
    assert (channel.cancelled, woken) == (False, [])


def test_a_coroutine_reads_the_same_events():
    channel, stream, _ = made()

    async def read():
        return [event.id async for event in stream]

    thread = threading.Timer(0.02, lambda: (channel.put(token(1)), channel.put(token(2)), channel.end()))
    thread.start()
    assert asyncio.run(read()) == [1, 2]
