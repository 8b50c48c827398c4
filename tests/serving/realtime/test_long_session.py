"""What a server holds does not grow with the hours of a session."""

from __future__ import annotations

import pytest

from tests.serving.realtime.long_session import converse
from tests.serving.running import running_server

GROWTH_MIB = 60
"""Of the second hour; what it is over four hours is in journal/20-realtime.md."""


@pytest.mark.slow
def test_two_hours() -> None:
    with running_server() as server:
        *_, after_one, after_two = converse(server, hours=2.0, every_minutes=60.0)
    assert after_two.answers > 200
    assert after_two.resident - after_one.resident < GROWTH_MIB
    assert after_two.files == after_one.files
    assert after_two.threads <= after_one.threads + 1
