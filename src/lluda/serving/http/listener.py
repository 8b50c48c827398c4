"""The sockets that a server listens on."""

from __future__ import annotations

import errno
import socket
from contextlib import suppress

from lluda.errors import InvalidRequest, LludaError

_BACKLOG = 512


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets for every address of ``host`` (port 0: a free one). LludaError: it is taken, or not this machine's."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise InvalidRequest(f"--host {host!r:.80} is no address of this machine: {error}") from None
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in found:
            if port == 0 and sockets:
                address = (address[0], sockets[0].getsockname()[1], *address[2:])
            sockets.append(_bound(family, kind, protocol, address))
    except OSError as error:
        for one in sockets:
            one.close()
        raise _explained(error, host, port) from None
    return sockets


def addresses(sockets: list[socket.socket]) -> list[str]:
    """As URLs."""
    found = []
    for one in sockets:
        host, port = one.getsockname()[:2]
        found.append(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
    return found


def _bound(family: int, kind: int, protocol: int, address: object) -> socket.socket:
    one = socket.socket(family, kind, protocol)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            with suppress(OSError):
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(address)  # type: ignore[arg-type]
        one.listen(_BACKLOG)
        one.setblocking(False)
    except OSError:
        one.close()
        raise
    return one


def _explained(error: OSError, host: str, port: int) -> LludaError:
    where = f"port {port} of {host}"
    match error.errno:
        case errno.EADDRINUSE:
            return LludaError(f"{where} is in use by another program; end it, or take another one: --port {port + 1}")
        case errno.EACCES:
            return LludaError(f"{where} may not be used by this user; take one from 1024 on (--port)")
        case errno.EADDRNOTAVAIL | errno.EAFNOSUPPORT:
            return InvalidRequest(f"{host} is no address of this machine; take --host 127.0.0.1, or 0.0.0.0 for all")
        case errno.EMFILE | errno.ENFILE:
            return LludaError("no file descriptor is left to listen with; raise their limit (ulimit -n)")
    return LludaError(f"{where} cannot be listened on: {error.strerror}")
