"""The session object: what is merged, what is refused, what is accepted without meaning."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.serving.realtime.talking import talking
from tests.serving.running import RunningServer


def test_what_holds_at_first(server: RunningServer) -> None:
    with talking(server) as talk:
        session = talk.events[0]["session"]
        assert session["object"] == "realtime.session" and session["type"] == "realtime"
        assert session["output_modalities"] == ["audio"]
        assert session["instructions"] == "" and session["tools"] == [] and session["tool_choice"] == "auto"
        assert session["max_output_tokens"] == "inf"
        assert session["audio"]["input"] == {
            "format": {"type": "audio/pcm", "rate": 24000},
            "noise_reduction": None,
            "transcription": None,
            "turn_detection": {
                "type": "server_vad",
                "threshold": 0.5,
                "prefix_padding_ms": 300,
                "silence_duration_ms": 500,
                "create_response": True,
                "interrupt_response": True,
                "idle_timeout_ms": None,
            },
        }
        assert session["audio"]["output"] == {
            "format": {"type": "audio/pcm", "rate": 24000},
            "voice": server.service.voices.names[0],
            "speed": 1.0,
        }


def test_updates_are_merged_deeply(server: RunningServer) -> None:
    with talking(server) as talk:
        talk.update(
            instructions="Be brief.", audio={"input": {"turn_detection": {"threshold": 0.7, "type": "server_vad"}}}
        )
        session = talk.update(audio={"input": {"turn_detection": {"type": "server_vad", "silence_duration_ms": 800}}})
        assert session["instructions"] == "Be brief."
        detection = session["audio"]["input"]["turn_detection"]
        assert (detection["threshold"], detection["silence_duration_ms"]) == (0.7, 800)
        session = talk.update(audio={"input": {"turn_detection": {"type": "semantic_vad", "eagerness": "low"}}})
        assert "threshold" not in session["audio"]["input"]["turn_detection"], "other rules replace those before"
        session = talk.update(audio={"input": {"turn_detection": None}}, instructions=None)
        assert session["audio"]["input"]["turn_detection"] is None and session["instructions"] == ""
        session = talk.update(audio={"output": {"voice": "marin"}})
        assert session["audio"]["output"]["voice"] == "marin"
        assert session["audio"]["input"]["turn_detection"] is None


def test_what_has_no_meaning_here_is_accepted(server: RunningServer) -> None:
    """Some clients end their session on any error event."""
    with talking(server) as talk:
        session = talk.update(
            model="gpt-realtime-2.1",
            tracing="auto",
            include=["item.input_audio_transcription.logprobs"],
            prompt=None,
            truncation={"type": "retention_ratio", "retention_ratio": 0.8},
            reasoning={"effort": "low"},
            max_output_tokens=None,
            output_modalities=["text", "audio"],
            audio={
                "input": {
                    "noise_reduction": {"type": "near_field"},
                    "transcription": {"model": "gpt-4o-mini-transcribe", "language": "en"},
                },
                "output": {"voice": {"id": "ash"}, "speed": 1.2},
            },
        )
        assert session["model"] == server.service.names.first
        assert session["output_modalities"] == ["audio"]
        assert session["max_output_tokens"] == "inf"
        assert session["audio"]["output"]["speed"] == 1.0
        assert session["audio"]["output"]["voice"] == "ash"
        assert session["audio"]["input"]["transcription"]["model"] == server.service.names.first


BAD: tuple[tuple[dict[str, Any], str, str], ...] = (
    (
        {"audio": {"input": {"turn_detection": {"type": "server_vad", "threshold": 2}}}},
        "session.audio.input.turn_detection.threshold",
        "invalid_value",
    ),
    (
        {"audio": {"input": {"turn_detection": {"type": "none"}}}},
        "session.audio.input.turn_detection",
        "unsupported_value",
    ),
    ({"audio": {"input": {"format": {"type": "audio/mp3"}}}}, "session.audio.input.format", "unsupported_value"),
    ({"audio": {"output": {"voice": "nobody"}}}, "session.audio.output.voice", "invalid_value"),
    ({"audio": {"output": {"volume": 3}}}, "session.audio.output.volume", "unknown_parameter"),
    ({"instructions": 3}, "session.instructions", "invalid_value"),
    ({"max_output_tokens": 0}, "session.max_output_tokens", "invalid_value"),
    ({"tools": [{"type": "mcp", "server_label": "x"}]}, "session.tools[0].type", "invalid_value"),
    ({"tools": [{"type": "function", "name": "a b"}]}, "session.tools[0].name", "invalid_value"),
    ({"tools": [{"type": "function", "name": "a"}] * 2}, "session.tools[1]", "invalid_value"),
    ({"tool_choice": "required"}, "session.tool_choice", "invalid_value"),
    ({"truncation": "disable"}, "session.truncation", "invalid_value"),
    (
        {"truncation": {"type": "retention_ratio", "retention_ratio": 8}},
        "session.truncation.retention_ratio",
        "invalid_value",
    ),
    ({"type": "phone"}, "session.type", "invalid_value"),
)


@pytest.mark.parametrize(("session", "param", "code"), BAD)
def test_nothing_is_applied_of_an_update_that_is_wrong(
    server: RunningServer, session: dict[str, Any], param: str, code: str
) -> None:
    with talking(server) as talk:
        before = talk.update(audio={"input": {"turn_detection": None}})
        error = talk.refused("session.update", session={"type": "realtime", "instructions": "New.", **session})
        assert (error["code"], error["param"], error["type"]) == (code, param, "invalid_request_error")
        assert talk.update() == before


BAD_RESPONSES: tuple[tuple[dict[str, Any], str], ...] = (
    ({"audio": {"output": {"voice": "nobody"}}}, "response.audio.output.voice"),
    ({"conversation": "non"}, "response.conversation"),
    ({"metadata": {str(number): "" for number in range(17)}}, "response.metadata"),
    ({"tools": [{"type": "function", "name": "a"}] * 2}, "response.tools[1]"),
    ({"tool_choice": {"type": "function", "name": "nobody"}}, "response.tool_choice"),
)


@pytest.mark.parametrize(("wish", "param"), BAD_RESPONSES)
def test_a_response_that_cannot_be_is_not_begun(server: RunningServer, wish: dict[str, Any], param: str) -> None:
    with talking(server) as talk:
        error = talk.refused("response.create", response=wish)
        assert (error["code"], error["param"]) == ("invalid_value", param)
        assert "None" not in error["message"]
        assert talk.ask("What is one plus two?", conversation="auto")["status"] == "completed"


def test_a_file_is_no_sound_to_append(server: RunningServer) -> None:
    sound = io.BytesIO()
    soundfile.write(sound, np.zeros(2400, np.float32), 24_000, format="WAV", subtype="PCM_16")
    with talking(server) as talk:
        error = talk.refused("input_audio_buffer.append", audio=base64.b64encode(sound.getvalue()).decode())
        assert (error["code"], error["param"]) == ("invalid_media", "audio")
        assert "WAV" in error["message"]


def test_voice_and_modality_hold_from_the_next_answer_on(server: RunningServer) -> None:
    with talking(server) as talk:
        talk.ask("What is one plus two?")
        first = talk.sound()
        voices = server.service.voices.names
        if len(voices) > 1:
            talk.update(audio={"output": {"voice": voices[1]}})
            assert talk.ask("What is one plus two?")["audio"]["output"]["voice"] == voices[1]
        talk.update(output_modalities=["text"])
        response = talk.ask("What is one plus two?")
        assert response["output_modalities"] == ["text"]
        assert response["output"][0]["content"][0]["type"] == "output_text"
        assert first and response["usage"]["output_token_details"]["audio_tokens"] == 0


def test_a_transcription_session_has_no_responses(server: RunningServer, spoken: Any) -> None:
    from tests.serving.realtime.conftest import silence

    for path in ("?intent=transcription", ""):
        with talking(server, path) as talk:
            if not path:
                talk.send("session.update", session={"type": "transcription"})
                talk.until("session.updated")
            assert talk.events[-1].get("session", talk.events[0]["session"])["type"] == "transcription"
            talk.append(spoken)
            talk.append(silence(0.9))
            done = talk.until("conversation.item.input_audio_transcription.completed")
            assert done["transcript"]
            assert talk.refused("response.create")["code"] == "unsupported_value"
            assert not talk.of("response.created")
