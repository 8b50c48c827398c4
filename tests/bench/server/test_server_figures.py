"""What a listener and a reader had, from the times of one call's pieces."""

from __future__ import annotations

import pytest

from lluda.bench.server.call import Address, Seen
from lluda.bench.server.figures import figures
from lluda.bench.server.load import Load, Round
from lluda.errors import InvalidRequest

SECOND = 48_000
"""Bytes of sound."""


def read(sent, *texts, tokens=None):
    return Seen(sent=sent, ended=texts[-1], texts=list(texts), tokens=tokens or len(texts))


def heard(*pieces):
    """Of ``(when, seconds)``, sent at 0."""
    sounds, count = [], 0
    for at, seconds in pieces:
        count += round(seconds * SECOND)
        sounds.append((at, count))
    return Seen(ended=pieces[-1][0], sounds=sounds)


@pytest.mark.parametrize(
    ("pieces", "underruns"),
    [
        (((1, 0.5), (1.4, 0.5), (1.9, 0.5)), 0),
        (((1, 0.5), (1.6, 0.5), (2.0, 0.5)), 1),  # silent from 1.5 to 1.6; what came then lasts until 2.1
        (((1, 0.1), (2, 0.1), (3, 0.1)), 2),
        (((1, 0.1), (1.2, 1.0), (2.1, 0.1)), 1),
        (((5, 3.0),), 0),
    ],
)
def test_a_listener_waits_where_sound_comes_too_late(pieces, underruns):
    assert heard(*pieces).underruns == underruns


def test_times_of_a_round():
    seen = (read(0, 1.0, 1.1, 1.2, 1.3), read(0.5, 1.0, 1.2, 1.4), Seen(sent=0.5, ended=0.6, error="429: full"))
    found = figures(Round("text", 2, seen))
    assert (found.requests, found.failed, found.errors) == (3, 1, ("429: full",))
    assert (found.first_token.median, found.first_token.largest) == (0.75, 1.0)
    assert found.between_tokens.median == pytest.approx(0.1)
    assert found.tokens_per_second == pytest.approx(7 / 1.4)
    assert found.first_sound is None and found.real_time_factor is None


def test_the_rate_of_decoding_is_that_of_the_callers_together():
    """From the last first token to the first last one, however many tokens came in a piece."""
    one = read(0, 1.0, 2.0, 3.0, tokens=3)
    other = read(0, 2.0, 2.5, 3.0, 3.5, tokens=8)
    assert figures(Round("text", 2, (one, other))).decode_rate == pytest.approx((1 + 2 * 2) / 1.0)
    apart = figures(Round("text", 2, (one, read(0, 3.5, 4.5))))
    assert apart.decode_rate is None


def test_sound_is_held_against_its_own_time():
    found = figures(Round("speech", 1, (heard((0.5, 1.0), (1.0, 1.0)),)))
    assert found.first_sound.median == 0.5
    assert found.real_time_factor.median == pytest.approx(1.0 / 2.0)
    assert found.audio_seconds_per_second == pytest.approx(2.0)


def test_what_comes_late_is_not_good():
    late_start, slow = read(0, 3.0, 3.1), read(0, 1.0, 1.5, 2.0)
    assert figures(Round("text", 1, (read(0, 1.0, 1.1),))).goodput == pytest.approx(1 / 1.1)
    for one in (late_start, slow, heard((1, 0.1), (2, 0.1))):
        assert figures(Round("text", 1, (one,))).goodput == 0


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8000", ("127.0.0.1", 8000, "", False)),
        ("127.0.0.1:8000/v1", ("127.0.0.1", 8000, "", False)),
        ("https://voice.example/llm/v1/", ("voice.example", 443, "/llm", True)),
    ],
)
def test_addresses(url, expected):
    address = Address.of(url)
    assert (address.host, address.port, address.path, address.is_secure) == expected


@pytest.mark.parametrize("url", ["", "ftp://x", "http://", "http://h:seven"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(InvalidRequest, match="takes a server's address"):
        Address.of(url)


@pytest.mark.parametrize("wrong", [{"concurrency": ()}, {"concurrency": (0,)}, {"requests": 0}, {"timeout": 0}])
def test_loads_that_are_none(wrong):
    with pytest.raises(InvalidRequest):
        Load(**wrong)
