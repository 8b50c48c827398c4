"""Family B of bad requests, below JSON: headers, framing, sizes, slow and greedy clients (raw sockets)."""

from __future__ import annotations

import gzip
import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import psutil
import pytest

from lluda.serving.limits import Limits
from tests.conftest import watchdog
from tests.serving.asking import wait_for
from tests.serving.oracle import check_well
from tests.serving.running import RunningServer, read_all, running_server

GET = b"GET /health HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /tokenize HTTP/1.1\r\nHost: x\r\ncontent-type: application/json\r\n"
QUICK = Limits(header_seconds=1, body_idle_seconds=1, keep_alive_seconds=1, body_bytes=1 << 16)


@pytest.fixture(scope="module")
def quick() -> Iterator[RunningServer]:
    """A server that loses patience soon, and takes small bodies."""
    with running_server(limits=QUICK) as running:
        yield running


def parsed(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of one answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    return int(status.split()[1]), dict(line.lower().split(": ", 1) for line in lines), body


def read_answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """One answer of a connection that stays open."""
    data = b""
    while True:
        _, separator, body = data.partition(b"\r\n\r\n")
        if separator and len(body) >= int(parsed(data)[1]["content-length"]):
            return parsed(data)
        part = connection.recv(1 << 16)
        assert part, data
        data += part


def check_refused(answer: bytes, *statuses: int) -> None:
    """One answer in the envelope with one of the statuses, and the connection is closed."""
    status, _, body = parsed(answer)
    assert status in statuses, answer[:200]
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"x: " + b"a" * (64 << 10), id="64 kB header"),
        pytest.param(b"x: " + b"a" * (1 << 20), id="1 MB header"),
        pytest.param(b"\r\n".join(b"x%d: y" % n for n in range(1000)), id="1,000 headers"),
        pytest.param(b"\r\n".join(b"x%d: y" % n for n in range(10_000)), id="10,000 headers"),
        pytest.param(b"\r\n".join(b"x: y" for n in range(101)), id="one header too many"),
    ],
)
def test_large_headers_are_refused(server: RunningServer, head: bytes) -> None:
    check_refused(server.raw(GET + head + b"\r\n\r\n"), 431)
    check_well(server)


def test_50_mb_of_header_are_not_kept(server: RunningServer) -> None:
    before = psutil.Process().memory_info().rss
    with server.connect() as connection:
        connection.sendall(GET + b"x: ")
        with suppress(OSError), watchdog(2):
            for _ in range(50):
                connection.sendall(b"a" * (1 << 20))
        assert psutil.Process().memory_info().rss - before < 20e6
    check_well(server)


def test_long_url_is_refused(server: RunningServer) -> None:
    check_refused(server.raw(b"GET /" + b"a" * (1 << 20) + b" HTTP/1.1\r\nHost: x\r\n\r\n"), 431)


@pytest.mark.parametrize(
    ("request_", "statuses"),
    [
        pytest.param(
            POST + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", (400,), id="both lengths"
        ),
        pytest.param(POST + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello", (400,), id="two lengths"),
        pytest.param(POST + b"content-length: -1\r\n\r\n", (400,), id="negative length"),
        pytest.param(POST + b"content-length: 5x\r\n\r\nhello", (400,), id="length that is no number"),
        pytest.param(POST + b"transfer-encoding: gzip\r\n\r\n", (400, 501), id="unknown transfer encoding"),
        pytest.param(POST + b"transfer-encoding: chunked\r\n\r\nxyz\r\n", (400,), id="bad chunk size"),
        pytest.param(POST + b"transfer-encoding: chunked\r\n\r\n-5\r\nhello\r\n", (400,), id="negative chunk"),
        pytest.param(
            POST + b"transfer-encoding: chunked\r\n\r\n5;" + b"e" * (1 << 20), (400, 431), id="chunk extension of 1 MB"
        ),
        pytest.param(b"GET /health HTTP/1.1\r\n\r\n", (400,), id="no host"),
        pytest.param(GET + b"Host: y\r\n\r\n", (400,), id="two hosts"),
        pytest.param(GET + b"a b: c\r\n\r\n", (400,), id="blank in a header's name"),
        pytest.param(GET + b"a\x00: c\r\n\r\n", (400,), id="NUL in a header's name"),
        pytest.param(GET + b"a: c\rd\r\n\r\n", (400,), id="carriage return in a header"),
        pytest.param(b"GET\r\n\r\n", (400,), id="half a request line"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64) + b"\r\n\r\n", (400,), id="TLS hello"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (505,), id="HTTP/2 preface"),
    ],
)
def test_framing_that_smugglers_use_is_refused(
    server: RunningServer, request_: bytes, statuses: tuple[int, ...]
) -> None:
    check_refused(server.raw(request_), *statuses)
    check_well(server)


def test_folded_header_is_one_header(server: RunningServer) -> None:
    """RFC 9112 lets a server replace the fold by a blank; what follows is no header of its own."""
    answer = server.raw(GET + b"x-request-id: a\r\n  connection: upgrade\r\nconnection: close\r\n\r\n")
    status, headers, _ = parsed(answer)
    assert status == 200 and headers["x-request-id"] == "a connection: upgrade"


def test_flood_of_chunks_is_refused_early(server: RunningServer) -> None:
    before = psutil.Process().cpu_times().user
    check_refused(server.raw(POST + b"transfer-encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 200_000), 400)
    assert psutil.Process().cpu_times().user - before < 1
    check_well(server)


def test_body_in_chunks(server: RunningServer) -> None:
    body = json.dumps({"prompt": "one two " * 2000}).encode()
    parts = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in re.findall(rb".{1,500}", body)) + b"0\r\n\r\n"
    status, _, answer = parsed(server.raw(POST + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n" + parts))
    assert status == 200 and json.loads(answer)["count"] > 2000


def test_body_of_exactly_the_limit_is_read(quick: RunningServer) -> None:
    text = "a " * ((QUICK.body_bytes - len('{"prompt":""}')) // 2)
    body = json.dumps({"prompt": text}, separators=(",", ":")).ljust(QUICK.body_bytes)
    assert len(body) == QUICK.body_bytes
    response = quick.client.post("/tokenize", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 200


@pytest.mark.parametrize("factor", [1, 10])
def test_larger_body_is_refused_before_it_is_read(quick: RunningServer, factor: int) -> None:
    size = QUICK.body_bytes * factor + 1
    with quick.connect() as connection:
        connection.sendall(POST + b"content-length: %d\r\n\r\n{" % size)
        status, _, body = read_answer(connection)
    assert status == 413 and json.loads(body)["error"]["code"] == "request_too_large"


def test_larger_body_in_chunks_is_refused(quick: RunningServer) -> None:
    with quick.connect() as connection:
        connection.sendall(POST + b"transfer-encoding: chunked\r\n\r\n")
        with suppress(OSError):
            for _ in range(10):
                connection.sendall(b"4000\r\n" + b"a" * 0x4000 + b"\r\n")
        assert read_answer(connection)[0] == 413


def test_bodies_of_all_requests_have_a_limit_together() -> None:
    with running_server(limits=Limits(body_bytes=1 << 16, bodies_bytes=100_000)) as small:
        half = POST + b"content-length: 60000\r\n\r\n" + b" " * 50_000
        whole = {"prompt": "a" * 55_000}
        with small.connect() as slow:
            slow.sendall(half)
            wait_for(lambda: small.service.held_bytes == 50_000)
            refused = small.post("/tokenize", whole)
            assert refused.status_code == 429 and refused.headers["retry-after"]
        wait_for(lambda: small.service.held_bytes == 0)
        assert small.post("/tokenize", whole).status_code == 200
        check_well(small)


def test_compressed_body_is_refused(server: RunningServer) -> None:
    bomb = gzip.compress(b" " * (10 << 20))
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    response = server.client.post("/tokenize", content=bomb, headers=headers)
    assert response.status_code == 415
    check_well(server)


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"GE", id="half a request line"),
        pytest.param(GET + b"x: ", id="half a header"),
        pytest.param(GET + b"\r\n" + b"GET /hea", id="half a second request"),
    ],
)
def test_headers_that_do_not_come_end_the_connection(quick: RunningServer, start: bytes) -> None:
    with watchdog(2), quick.connect() as connection:
        connection.sendall(start)
        read_all(connection)  # ends when the server closes


def test_headers_a_byte_a_time_end_the_connection(quick: RunningServer) -> None:
    with watchdog(2), quick.connect() as connection, suppress(OSError):
        for byte in GET * 10:
            connection.sendall(bytes([byte]))
            time.sleep(0.02)
            connection.setblocking(False)
            with suppress(BlockingIOError):
                if b"408" in connection.recv(1 << 16):
                    break
            connection.setblocking(True)
        else:
            pytest.fail("the server took headers for longer than it may")


@pytest.mark.parametrize("sent", [b"", b'{"prompt": "'])
def test_body_that_does_not_come_is_408(quick: RunningServer, sent: bytes) -> None:
    with watchdog(2):
        answer = quick.raw(POST + b"connection: close\r\ncontent-length: 50\r\n\r\n" + sent)
    check_refused(answer, 408)
    check_well(quick)


def test_many_idle_connections_leave_room_for_others(server: RunningServer) -> None:
    """500 that send half a header, and those that ask are answered."""
    with ExitStack() as stack:
        for _ in range(500):
            stack.enter_context(server.connect()).sendall(b"GET /health HT")
        for _ in range(20):
            assert server.get("/health").status_code == 200
    check_well(server)


def test_more_connections_than_the_limit_are_told_so() -> None:
    with running_server(limits=Limits(connections=20)) as small:
        small.get("/health")
        with ExitStack() as stack:
            waiting = [stack.enter_context(small.connect()) for _ in range(40)]
            check_refused(read_all(waiting[-1]), 503)
        end = time.monotonic() + 10
        while True:  # until the server has seen that they are gone
            with suppress(Exception):
                if small.get("/health").status_code == 200:
                    break
            assert time.monotonic() < end
        check_well(small)


def test_a_hundred_requests_on_one_connection_in_one_packet(server: RunningServer) -> None:
    asked = b"".join(GET + b"x-request-id: n%d\r\n\r\n" % number for number in range(99))
    answers = server.raw(asked + GET + b"x-request-id: n99\r\nconnection: close\r\n\r\n")
    assert re.findall(rb"x-request-id: n(\d+)", answers) == [b"%d" % number for number in range(100)]
    assert answers.count(b"HTTP/1.1 200") == 100


def test_http_1_0(server: RunningServer) -> None:
    assert parsed(server.raw(b"GET /health HTTP/1.0\r\n\r\n"))[0] == 200


@pytest.mark.parametrize("kind", [b"h2c", b"websocket"])
def test_upgrade_of_a_route_that_has_none_is_ignored(server: RunningServer, kind: bytes) -> None:
    answer = server.raw(GET + b"connection: upgrade, close\r\nupgrade: " + kind + b"\r\n\r\n")
    assert parsed(answer)[0] == 200


def test_client_that_closes_within_its_body(server: RunningServer) -> None:
    with server.connect() as connection:
        connection.sendall(POST + b"content-length: 50\r\n\r\n{")
    with server.connect() as connection:
        connection.sendall(POST + b"content-length: 50\r\n\r\n{")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")  # a reset
    check_well(server)
