"""Where a semantic turn ends: by what the model would answer to it so far."""

from __future__ import annotations

import asyncio
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lluda.engine.listening.turn_detector import TAIL
from lluda.engine.listening.turn_end import WAITS
from lluda.engine.request import SpeechChunk
from lluda.serving.limits import Limits
from lluda.serving.realtime.events.session_fields import SemanticVad, ServerVad
from lluda.serving.realtime.session_settings import SoundFormat
from lluda.serving.realtime.turns.input_turns import InputTurns
from tests.serving.realtime.conftest import silence
from tests.serving.realtime.talking import pcm
from tests.serving.running import RunningServer

UNCLEAR, CLEAR = 5, 6
BLOCK_MS, FRAME_MS = 20, 32


class ScriptedListener:
    """Would answer ``token``, surely, wherever the turn may end (None: it is never known)."""

    def __init__(self, token: int | None) -> None:
        self._token, self.pushed = token, 0
        self.expected: list[int | None] = []
        self.silences: list[float] = []
        """Milliseconds of silence that were pushed when each turn was over."""

    @property
    def first_token(self) -> Any:
        if self._token is None or not self.expected or self.expected[-1] is None:
            return None
        return SimpleNamespace(top=((self._token, 0.0), (9, -math.inf)))

    def push(self, samples: Any) -> None:
        self.pushed += len(samples)

    def expect_end(self, sample: int | None) -> None:
        self.expected.append(sample)

    def finish(self, end: int) -> object:
        assert end == self.expected[-1]
        self.silences.append((self.pushed - end + TAIL) / 16)
        return None

    def settled(self, _: float) -> bool:
        return True

    def discard(self) -> None:
        raise AssertionError("no turn is discarded here")


@pytest.fixture(scope="module")
def words(server: RunningServer) -> Any:
    """What somebody says before he stops to think."""
    return np.concatenate(
        [event.samples for event in server.model.say("What is the") if isinstance(event, SpeechChunk)]
    )


def silence_until_over(words: Any, detection: Any, token: int | None, unclear: int | None) -> float:
    listener = ScriptedListener(token)
    settings: Any = SimpleNamespace(input_format=SoundFormat("audio/pcm", 24000), turn_detection=detection)
    listen: Any = lambda: listener  # noqa: E731
    turns = InputTurns(settings, Limits(), listen, lambda _: None, lambda _: None, unclear)
    data = pcm(np.concatenate((words, silence(4))))
    size = 48 * BLOCK_MS

    async def talk() -> None:
        for start in range(0, len(data), size):
            await turns.append(data[start : start + size])

    asyncio.run(talk())
    (found,) = listener.silences
    return found


@pytest.mark.parametrize("eagerness", ["low", "auto", "high"])
@pytest.mark.parametrize("token", [UNCLEAR, CLEAR, None])
@pytest.mark.parametrize("unclear", [UNCLEAR, None])
def test_a_turn_that_is_answered_ends_sooner(
    words: Any, eagerness: Any, token: int | None, unclear: int | None
) -> None:
    """Without an answer yet, or a model that has none to what it does not understand, eagerness alone decides."""
    found = silence_until_over(words, SemanticVad(type="semantic_vad", eagerness=eagerness), token, unclear)
    waits = WAITS["medium" if eagerness == "auto" else eagerness]
    enough = waits.unjudged
    if unclear is not None and token is not None:
        enough = waits.undecided if token == UNCLEAR else waits.judged[0][1]
    # The judge is asked one frame after its pause was told of, and blocks hold up to 20 ms more.
    assert enough <= found <= max(enough, 1000 * TAIL / 16000 + FRAME_MS) + FRAME_MS + BLOCK_MS


def test_server_vad_asks_no_model(words: Any) -> None:
    for token in (UNCLEAR, CLEAR):
        found = silence_until_over(words, ServerVad(), token, UNCLEAR)
        assert 500 <= found <= 500 + FRAME_MS + BLOCK_MS


def test_tiny_omni_says_sorry_to_what_it_does_not_understand(server: RunningServer) -> None:
    token = server.model.unclear_answer
    assert token is not None
    assert token.text == "Sorry"
