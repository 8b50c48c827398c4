"""A server that was started with --no-speech (the option itself: test_documented_commands.py)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serving.oracle import check_error, check_well
from tests.serving.running import RunningServer, running_server

ASKED = {"model": "tiny-omni", "messages": [{"role": "user", "content": "What is one plus two?"}], "max_tokens": 8}
SPOKEN = {"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "wav"}}


@pytest.fixture(scope="module")
def silent() -> Iterator[RunningServer]:
    with running_server(speaks=False) as running:
        yield running


def test_text_is_answered_and_nothing_that_speaks_is_loaded(silent: RunningServer) -> None:
    assert silent.post("/v1/chat/completions", ASKED).status_code == 200
    (model,) = silent.get("/v1/models").json()["data"]
    assert model["modalities"]["output"] == ["text"] and model["voices"] == []
    assert silent.model._speech_stack is None
    check_well(silent)


def test_speech_is_refused_in_words(silent: RunningServer) -> None:
    spoken = {"model": "tiny-omni", "input": "One.", "voice": "alloy"}
    for path, body in (("/v1/chat/completions", ASKED | SPOKEN), ("/v1/audio/speech", spoken)):
        error = check_error(silent.post(path, body), 400, "unsupported_value")
        assert "--no-speech" in error["message"]
    assert silent.model._speech_stack is None
    check_well(silent)
