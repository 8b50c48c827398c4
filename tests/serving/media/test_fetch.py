"""Media from addresses (D6 to D9): off unless hosts are allowed, public addresses alone, and bounded in all ways."""

import asyncio
import contextlib
import socket

import pytest

from lluda.serving.http.errors import ApiError
from lluda.serving.media.fetch import Fetcher, is_public

PUBLIC = "93.184.216.34"
LIMIT = 10_000
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nRIFF"


class World:
    """Names, addresses and one server behind all of them; what was looked up and connected to is noted."""

    def __init__(self, answer=ANSWER, addresses=(PUBLIC,), pause=0.0):
        self.answer, self.addresses, self.pause = answer, list(addresses), pause
        self.looked_up, self.connected, self.requests = [], [], []

    async def resolve(self, host, port):
        self.looked_up.append((host, port))
        found = self.addresses.pop(0) if isinstance(self.addresses[0], list) else self.addresses
        return list(found)

    async def connect(self, address, port, tls_host):
        self.connected.append((address, port, tls_host))
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def serve(self, reader, writer):
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            self.requests.append(await reader.readuntil(b"\r\n\r\n"))
            step = 1 if self.pause else len(self.answer) or 1
            for start in range(0, len(self.answer), step):
                writer.write(self.answer[start : start + step])
                await writer.drain()
                await asyncio.sleep(self.pause)
        writer.close()

    def fetch(self, *urls, domains=("example.org",), seconds=5.0):
        async def run():
            server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
            self.port = server.sockets[0].getsockname()[1]
            fetcher = Fetcher(domains, LIMIT, seconds, resolve=self.resolve, connect=self.connect)
            try:
                return await fetcher.fetch([(url, f"messages[0].content[{n}].url") for n, url in enumerate(urls)])
            finally:
                server.close()

        return asyncio.run(run())

    def refused(self, *urls, **options):
        with pytest.raises(ApiError) as refused:
            self.fetch(*urls, **options)
        assert refused.value.status == 400
        assert refused.value.param.startswith("messages[0].content[")
        return refused.value


def test_what_is_allowed_is_fetched_from_the_address_that_was_checked():
    world = World()
    assert world.fetch("http://cdn.EXAMPLE.org/a.wav?x=1#y") == [b"RIFF"]
    assert world.looked_up == [("cdn.example.org", 80)]
    assert world.connected == [(PUBLIC, 80, None)]
    assert world.requests[0].startswith(b"GET /a.wav?x=1 HTTP/1.1\r\n")
    assert b"\r\nHost: cdn.example.org\r\n" in world.requests[0]


def test_tls_is_spoken_with_the_name():
    world = World()
    world.fetch("https://example.org")
    assert world.connected == [(PUBLIC, 443, "example.org")]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nRI\r\n2\r\nFF\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\nRIFF",
        b"HTTP/1.1 100 Continue\r\n\r\n" + ANSWER,
    ],
)
def test_bodies_of_all_forms(answer):
    assert World(answer).fetch("http://example.org/a") == [b"RIFF"]


def test_nothing_is_looked_up_or_opened_where_fetching_is_off(monkeypatch):
    def fail(*_, **__):
        raise AssertionError("a socket was opened, or a name looked up")

    async def run():
        with monkeypatch.context() as patched, pytest.raises(ApiError) as refused:
            patched.setattr(socket, "socket", fail)
            patched.setattr(socket, "getaddrinfo", fail)
            await Fetcher((), LIMIT, 5).fetch([("http://example.org/a.png", "url")])
        return refused.value

    assert asyncio.run(run()).code == "url_fetch_disabled"


@pytest.mark.parametrize(
    "url",
    [
        "http://other.net/a",
        "http://example.org.evil.net/a",
        "http://notexample.org/a",
        "http://example.org@evil.net/a",
        "http://ok@example.org/a",
        "http://user:word@example.org/a",
        "http://evil.net\\@example.org/a",
        "http://example.org\\.evil.net/a",
        "http://exämple.org/a",
        "http://example。org/a",
        "http://example.org:22/a",
        "http://example.org:443/a",
        "https://example.org:8443/a",
        "http://example.org:port/a",
        "http:///a",
        "http:example.org/a",
        "http://[example.org/a",
        "http://example.org/a b",
        "http://example.org/a\r\nX-Injected: 1",
        "http://example.org/\x00",
        "http://example.org/" + "a" * 5000,
        "ftp://example.org/a",
        "gopher://example.org/a",
        "file:///etc/passwd",
        "FILE:///etc/passwd",
        "/etc/passwd",
        "../../etc/passwd",
        "/proc/self/environ",
        "javascript:alert(1)",
        "",
    ],
)
def test_what_is_refused_before_anything_is_looked_up(url):
    world = World()
    assert world.refused(url).code == "unsupported_value"
    assert world.looked_up == world.connected == []


PRIVATE = (
    "127.0.0.1",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "192.0.2.1",
    "::1",
    "::",
    "::ffff:10.0.0.1",
    "::ffff:127.0.0.1",
    "::127.0.0.1",
    "fe80::1%eth0",
    "fc00::1",
    "ff02::1",
    "64:ff9b::7f00:1",
    "64:ff9b::a00:1",
    "2002:7f00:1::",
    "2001:0:4136:e378:8000:63bf:80ff:fffe",
)


@pytest.mark.parametrize("address", PRIVATE)
def test_a_name_of_a_private_address_is_refused_unconnected(address):
    """Also where another of its addresses is public."""
    for addresses in ([address], [PUBLIC, address], [address, PUBLIC]):
        world = World(addresses=addresses)
        assert "no public address" in world.refused("http://example.org/a").message
        assert address not in world.refused("http://example.org/a").message
        assert world.connected == []


def test_public_addresses():
    assert is_public(PUBLIC)
    assert is_public("2606:2800:220:1:248:1893:25c8:1946")
    assert is_public(f"::ffff:{PUBLIC}")


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.1", "0x7f.1", "2130706433", "0", "localhost", "[::1]", "017700000001"]
)
def test_loopback_in_all_spellings_with_the_real_resolver(host):
    """Every host allowed: what the system makes of the name is what is checked."""

    async def connect(address, port, tls_host):
        raise AssertionError(f"connected to {address}")

    async def run():
        with pytest.raises(ApiError) as refused:
            await Fetcher(("*",), LIMIT, 5, connect=connect).fetch([(f"http://{host}/", "url")])
        return refused.value

    assert asyncio.run(run()).status == 400


@pytest.mark.parametrize("host", ["a..example.org", f"{'a' * 64}.example.org", "-.example.org.", "..example.org"])
def test_names_that_dns_cannot_have(host):
    async def run():
        with pytest.raises(ApiError) as refused:
            await Fetcher(("example.org",), LIMIT, 5).fetch([(f"http://{host}/", "url")])
        return refused.value

    assert "could not be fetched" in asyncio.run(run()).message


def test_the_next_address_is_tried_where_one_does_not_answer():
    world = World(addresses=["2606:2800:220:1:248:1893:25c8:1946", PUBLIC])
    connect = world.connect

    async def over_ipv4(address, port, tls_host):
        if ":" in address:
            raise OSError("Network is unreachable")
        return await connect(address, port, tls_host)

    world.connect = over_ipv4
    assert world.fetch("http://example.org/a") == [b"RIFF"]
    assert [address for address, *_ in world.connected] == [PUBLIC]


def test_a_name_that_changes_its_address_is_looked_up_once():
    """DNS rebinding: the second answer, a private one, is never asked for."""
    world = World(addresses=[[PUBLIC], ["127.0.0.1"]])
    assert world.fetch("http://example.org/a") == [b"RIFF"]
    assert len(world.looked_up) == 1
    assert world.connected == [(PUBLIC, 80, None)]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1/\r\ncontent-length: 0\r\n\r\n", "redirects"),
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", "answered 404"),
        (b"HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n", "answered 500"),
        (b"HTTP/1.1 206 Partial Content\r\ncontent-length: 4\r\n\r\nRIFF", "answered 206"),
        (b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 4\r\n\r\n\x1f\x8b\x08\x00", "compressed"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 10001\r\n\r\n", "more bytes"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\n", "more bytes"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + bytes(LIMIT + 1), "more bytes"),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2711\r\n" + bytes(10_001) + b"\r\n0\r\n\r\n",
            "more bytes",
        ),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nRIFF", "broke off"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\nRIFF", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"a" * 200_000, "not HTTP"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "not HTTP"),
        (b"\x16\x03\x01\x00\x01", "not HTTP"),
        (b"", "not HTTP"),
    ],
)
def test_what_a_server_may_answer_wrongly(answer, words):
    refused = World(answer).refused("http://example.org/a")
    assert words in refused.message
    assert refused.code == "invalid_media"


def test_no_connection_no_name_and_no_tls_are_told_apart_by_class_only():
    for error, words in (
        (ConnectionRefusedError(111, "Connect call failed ('10.1.2.3', 80)"), "no connection"),
        (socket.gaierror(-2, "Name or service not known"), "no connection"),
    ):
        world = World()

        async def fail(*_, error=error):
            raise error

        world.connect = fail
        refused = world.refused("http://example.org/a")
        assert words in refused.message
        assert "10.1.2.3" not in refused.message


def test_tls_with_a_server_that_has_none():
    world = World(b"not TLS at all\r\n")

    async def connect(address, port, tls_host):
        import ssl

        return await asyncio.open_connection(
            "127.0.0.1", world.port, ssl=ssl.create_default_context(), server_hostname=tls_host
        )

    world.connect = connect

    async def serve(reader, writer):
        writer.write(b"not TLS at all\r\n")
        writer.close()

    world.serve = serve
    assert "TLS failed" in world.refused("https://example.org/a").message


def test_a_slow_server_has_its_time_and_no_more():
    world = World(ANSWER, pause=0.2)  # 5 bytes a second: 9 s
    assert "did not come within 0.3 s" in world.refused("http://example.org/a", seconds=0.3).message


def test_addresses_are_fetched_side_by_side_and_their_sizes_added():
    world = World(ANSWER)
    assert world.fetch(*[f"http://example.org/{n}" for n in range(10)]) == [b"RIFF"] * 10
    slow = World(ANSWER, pause=0.01)  # half a second each: ten after each other would be 5 s
    assert slow.fetch(*[f"http://example.org/{n}" for n in range(10)], seconds=3) == [b"RIFF"] * 10
    large = World(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(LIMIT // 2 + 1))
    assert "more bytes" in large.refused("http://example.org/a", "http://example.org/b").message
