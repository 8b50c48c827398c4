"""Sessions of clients that speak the names of the API's beta."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.serving.realtime.conftest import silence
from tests.serving.realtime.talking import Talk, talking
from tests.serving.running import RunningServer

FLAT = {
    "modalities": ["text", "audio"],
    "instructions": "Be brief.",
    "voice": "alloy",
    "input_audio_format": "pcm16",
    "output_audio_format": "g711_ulaw",
    "input_audio_transcription": {"model": "whisper-1"},
    "input_audio_noise_reduction": None,
    "turn_detection": {"type": "server_vad", "threshold": 0.6},
    "temperature": 0.8,
    "max_response_output_tokens": 400,
    "tools": [],
}
GA_ONLY = ("response.output_audio", "response.output_text", "conversation.item.added", "conversation.item.done")


def check_beta(talk: Talk, start: int) -> None:
    """No name of today's is among the events."""
    for event in talk.events[start:]:
        assert not event["type"].startswith(GA_ONLY), event["type"]
        for item in [event.get("item"), *event.get("response", {}).get("output", [])]:
            for part in (item or {}).get("content", []):
                assert part["type"] in ("text", "audio", "input_text", "input_audio")


@pytest.mark.parametrize(
    "options",
    [
        {"additional_headers": {"OpenAI-Beta": "realtime=v1"}},
        {"subprotocols": ["realtime", "openai-beta.realtime-v1"]},
        {},
    ],
)
def test_a_session_of_the_beta(server: RunningServer, spoken: Any, options: dict[str, Any]) -> None:
    with talking(server, beta=True, **options) as talk:
        talk.send("session.update", session=FLAT)
        session = talk.until("session.updated")["session"]
        expected = {name: value for name, value in FLAT.items() if name != "temperature"}
        for name in ("input_audio_transcription", "turn_detection"):
            got, asked = session[name], expected.pop(name)
            assert got["threshold" if name == "turn_detection" else "language"] == asked.get("threshold")
        assert {name: session[name] for name in expected} == expected
        assert "audio" not in session and "type" not in session
        start = len(talk.events) - 1
        talk.append(np.concatenate([spoken, silence(0.9)]))
        response = talk.until("response.done")["response"]
        assert response["status"] == "completed" and response["modalities"] == ["text", "audio"]
        assert response["output_audio_format"] == "g711_ulaw"
        assert len(talk.sound()) > 4000
        talk.send(
            "conversation.item.create",
            item={"type": "message", "role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
        )
        assert talk.until("conversation.item.created")["item"]["content"] == [{"type": "text", "text": "Yes."}]
        talk.send("response.create", response={"modalities": ["text"], "max_response_output_tokens": 30})
        response = talk.until("response.done")["response"]
        assert response["modalities"] == ["text"] and talk.of("response.text.delta")
        if not talk.of("conversation.item.input_audio_transcription.completed"):
            talk.until("conversation.item.input_audio_transcription.completed")
        check_beta(talk, start)


def test_a_transcription_session_of_the_beta(server: RunningServer) -> None:
    with talking(server, beta=True, additional_headers={"OpenAI-Beta": "realtime=v1"}) as talk:
        wish = {"input_audio_format": "g711_alaw", "turn_detection": None}
        talk.send("transcription_session.update", session=wish)
        session = talk.until("session.updated")["session"]
        assert (session["input_audio_format"], session["turn_detection"]) == ("g711_alaw", None)
        assert "modalities" not in session


def test_todays_clients_may_use_older_names_in_a_response(server: RunningServer) -> None:
    with talking(server) as talk:
        assert talk.ask("What is one plus two?", modalities=["text"])["output_modalities"] == ["text"]
