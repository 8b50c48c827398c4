"""Messages between two ranks over a socket, which also tells each that the other is gone."""

from __future__ import annotations

import pickle
import socket
import struct
import time

_LENGTH = struct.Struct("<Q")

_SPIN_SECONDS = 0.002
"""How long a rank asks again and again for its next message before it sleeps: waking up takes tens of microseconds,
which every step of one row would wait for."""

_KEEPALIVE = {"TCP_KEEPIDLE": 2, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 5}
"""A host that is gone is found within 7 s."""


class Channel:
    """Python objects over a connected TCP socket, between processes of lluda alone (they are pickled). EOFError: the
    other end is closed; OSError: the connection broke."""

    def __init__(self, connection: socket.socket, *, spins: bool = False) -> None:
        """``spins``: wait for a message with the processor, for a while."""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._socket = connection
        self.spins = spins

    def fileno(self) -> int:
        """For ``select``."""
        return self._socket.fileno()

    def send(self, message: object) -> None:
        """Send a message."""
        self.send_bytes(pickled(message))

    def send_bytes(self, data: bytes) -> None:
        """Send what `pickled` made."""
        self._socket.sendall(data)

    def receive(self) -> object:
        """Wait for a message."""
        if self.spins:
            self._spin()
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
        return pickle.loads(self._read(length))  # of a process of lluda: see the class

    def close(self) -> None:
        """The other end is told."""
        self._socket.close()

    def _spin(self) -> None:
        end = time.monotonic() + _SPIN_SECONDS
        while time.monotonic() < end:
            try:
                self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            except BlockingIOError:
                continue
            return

    def _read(self, count: int) -> bytes:
        data = bytearray(count)
        view = memoryview(data)
        while view:
            read = self._socket.recv_into(view)
            if not read:
                raise EOFError("the other rank closed its connection")
            view = view[read:]
        return bytes(data)


def pickled(message: object) -> bytes:
    """A message as it is sent, for several channels."""
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(data)) + data
