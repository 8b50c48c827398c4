"""Media from web addresses, where the server's owner allows their hosts: never from this machine or its network.

A request must not reach what its sender cannot reach (server-side request forgery). So a URL is taken apart once, its
host looked up once, every address found must be public, and the connection goes to one of those addresses and not to
the name. Redirects are not followed.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

import h11

from lluda.serving.http.errors import ApiError, invalid

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Resolve = Callable[[str, int], Awaitable[list[str]]]
Connect = Callable[[str, int, str | None], Awaitable[Connection]]

ANY_HOST = "*"
_PORTS = {"http": 80, "https": 443}
_MOST_URL = 4096
_AT_ONCE = 1 << 16
_PLAIN = re.compile(r"[!-\[\]-~]+")  # printable ASCII without space and backslash: parsers differ on the rest
_HOST = re.compile(r"[a-z0-9_.:-]+", re.IGNORECASE)

_PUBLIC_V6 = ipaddress.ip_network("2000::/3")
_TUNNELS = tuple(ipaddress.ip_network(one) for one in ("2002::/16", "2001::/32"))
"""Those of IPv6 that carry an IPv4 address to which a gateway passes on: 6to4, Teredo."""


@dataclass(frozen=True, slots=True)
class _Target:
    scheme: str
    host: str
    path: str

    @property
    def port(self) -> int:
        return _PORTS[self.scheme]


@dataclass(slots=True)
class _Allowance:
    """Bytes that one request may still fetch."""

    left: int

    def take(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise _Failed("more bytes than the media of one request may have")


class _Failed(Exception):
    """Why nothing was fetched, in words that tell a client nothing of this machine's network."""


class Fetcher:
    """``domains``: hosts that media may come from, each with its subdomains; ``*`` is every public host, none switches
    fetching off. ``limit``: bytes of one request's media together; ``seconds`` for each. ``resolve`` and ``connect``
    are how a name becomes addresses and an address a connection.
    """

    def __init__(
        self,
        domains: Sequence[str],
        limit: int,
        seconds: float,
        *,
        resolve: Resolve | None = None,
        connect: Connect | None = None,
    ) -> None:
        self._domains = tuple(domain.lower().strip(".") for domain in domains)
        self._limit, self._seconds = limit, seconds
        self._resolve, self._connect = resolve or _addresses, connect or _connection

    async def fetch(self, urls: Sequence[tuple[str, str]]) -> list[bytes]:
        """The contents of ``(url, param)``, fetched side by side.

        ApiError 400: ``url_fetch_disabled``; ``unsupported_value`` for another scheme, port or host than are allowed;
        ``invalid_media`` where the address is not public or does not answer with content in time and size.
        """
        targets = [(self._checked(url, param), param) for url, param in urls]
        allowance = _Allowance(self._limit)
        tasks = [asyncio.create_task(self._fetched(target, param, allowance)) for target, param in targets]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    def _checked(self, url: str, param: str) -> _Target:
        """What the URL names. Nothing is looked up."""
        if not self._domains:
            words = f"{param}: this server fetches no addresses; send the medium as data:TYPE;base64,…"
            raise ApiError(400, "url_fetch_disabled", words, param=param)
        target = _parsed(url, param)
        if not any(target.host == one or target.host.endswith("." + one) or one == ANY_HOST for one in self._domains):
            words = f"{param}: media may not come from the host {target.host:.80}; send data:TYPE;base64,…"
            raise invalid(words, param, "unsupported_value")
        return target

    async def _fetched(self, target: _Target, param: str, allowance: _Allowance) -> bytes:
        try:
            async with asyncio.timeout(self._seconds):
                return await self._answer(target, allowance)
        except TimeoutError:
            reason = f"it did not come within {self._seconds:g} s"
        except _Failed as error:
            reason = str(error)
        except ssl.SSLError:
            reason = "TLS failed"
        except (OSError, UnicodeError):  # UnicodeError: a name that DNS cannot have
            reason = "no connection"
        except h11.RemoteProtocolError:
            reason = "the answer is not HTTP, or broke off"
        raise invalid(f"{param} could not be fetched: {reason}", param, "invalid_media")

    async def _answer(self, target: _Target, allowance: _Allowance) -> bytes:
        addresses = await self._resolve(target.host, target.port)
        if not addresses or not all(is_public(address) for address in addresses):
            raise _Failed("the host has no public address")
        reader, writer = await self._connected(target, addresses)
        try:
            return await _get(target, reader, writer, allowance)
        finally:
            writer.close()

    async def _connected(self, target: _Target, addresses: Sequence[str]) -> Connection:
        """To the first address that answers. OSError, ssl.SSLError: of the last one."""
        tls_host = target.host if target.scheme == "https" else None
        *others, last = addresses
        for address in others:
            with suppress(OSError):
                return await self._connect(address, target.port, tls_host)
        return await self._connect(last, target.port, tls_host)


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet's: not of this machine, its networks, or a gateway into them."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return is_public(str(found.ipv4_mapped))
        if found not in _PUBLIC_V6 or any(found in tunnel for tunnel in _TUNNELS):
            return False
    return found.is_global and not found.is_multicast


def _parsed(url: str, param: str) -> _Target:
    scheme = url[:40].partition(":")[0].lower()
    if scheme not in _PORTS:
        words = f"{param} must be a data: URL, or an address of http or https; files of the server are never read"
        raise invalid(words, param, "unsupported_value")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port = "", None
    usable = len(url) <= _MOST_URL and _PLAIN.fullmatch(url) and _HOST.fullmatch(host) and "@" not in parts.netloc
    if not usable:
        words = f"{param} is no usable address: plain ASCII, a host, no user or password, up to {_MOST_URL} characters"
        raise invalid(words, param, "unsupported_value")
    if port not in (None, _PORTS[scheme]):
        words = f"{param}: {scheme} is fetched from port {_PORTS[scheme]} only, not {port}"
        raise invalid(words, param, "unsupported_value")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return _Target(scheme, host.rstrip("."), path)


async def _addresses(host: str, port: int) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


async def _connection(address: str, port: int, tls_host: str | None) -> Connection:
    if tls_host is None:
        return await asyncio.open_connection(address, port)
    return await asyncio.open_connection(address, port, ssl=ssl.create_default_context(), server_hostname=tls_host)


async def _get(
    target: _Target, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, allowance: _Allowance
) -> bytes:
    host = f"[{target.host}]" if ":" in target.host else target.host
    headers = [("Host", host), ("Accept-Encoding", "identity"), ("User-Agent", "lluda"), ("Connection", "close")]
    connection = h11.Connection(h11.CLIENT)
    request = h11.Request(method="GET", target=target.path, headers=headers)
    writer.write((connection.send(request) or b"") + (connection.send(h11.EndOfMessage()) or b""))
    await writer.drain()
    body: list[bytes] = []
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(_AT_ONCE))
        elif isinstance(event, h11.Response):
            _check_head(event, allowance)
        elif isinstance(event, h11.Data):
            allowance.take(len(event.data))
            body.append(bytes(event.data))
        elif isinstance(event, h11.EndOfMessage):
            return b"".join(body)


def _check_head(response: h11.Response, allowance: _Allowance) -> None:
    if 300 <= response.status_code < 400:
        raise _Failed("the address redirects, which is not followed; give the address that it leads to")
    if response.status_code != 200:
        raise _Failed(f"the address answered {response.status_code}")
    headers = dict(response.headers)
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise _Failed("the content is compressed in transfer, which was not asked for")
    if int(headers.get(b"content-length", b"0")) > allowance.left:
        raise _Failed("more bytes than the media of one request may have")
