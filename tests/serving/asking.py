"""Requests on raw connections, which tests leave, stall or read as they like."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from typing import Any

from tests.serving.running import RunningServer

LONG = {"prompt": [5, 6, 7, 8], "max_tokens": 4000}
"""Runs for seconds."""


def ask(server: RunningServer, body: dict[str, Any], path: str = "/example") -> socket.socket:
    """A connection on which ``body`` was sent."""
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    connection = server.connect()
    connection.sendall(head.encode() + content)
    return connection


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Until ``condition`` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to this"
        time.sleep(0.002)


def outcomes(server: RunningServer, endpoint: str = "completions") -> dict[str, float]:
    """Ended requests by outcome."""
    samples = server.service.metrics.requests.collect()[0].samples
    return {
        sample.labels["outcome"]: sample.value
        for sample in samples
        if sample.name.endswith("_total") and sample.labels["endpoint"] == endpoint
    }
