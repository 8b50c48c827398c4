"""Speech of tiny-omni's own, which it hears best."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lluda.engine.request import SpeechChunk
from tests.serving.oracle import wait_until_idle
from tests.serving.realtime.talking import eventually
from tests.serving.running import RunningServer

QUESTION = "What is the capital of France?"


@pytest.fixture(autouse=True)
def well(server: RunningServer) -> Any:
    """No session is left open, nothing runs on."""
    yield
    eventually(lambda: not len(server.service.sessions))
    wait_until_idle(server)


@pytest.fixture(scope="session")
def spoken(server: RunningServer) -> Any:
    """A question's samples at 24 kHz."""
    events = server.model.say(QUESTION, speaker="lark")
    return np.concatenate([event.samples for event in events if isinstance(event, SpeechChunk)])


def silence(seconds: float) -> Any:
    return np.zeros(int(seconds * 24000), np.float32)
