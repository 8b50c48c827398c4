"""The server that all clients ask."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serving.running import RunningServer, running_server


@pytest.fixture(scope="session")
def server() -> Iterator[RunningServer]:
    """tiny-omni on a free port."""
    with running_server() as running:
        yield running
