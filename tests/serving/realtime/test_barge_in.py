"""The user speaks while an answer is on its way."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lluda.engine.stream import Channel
from lluda.serving.realtime.answers.speech_pace import SpeechPace
from tests.serving.realtime.conftest import silence
from tests.serving.realtime.talking import Talk, eventually, talking
from tests.serving.running import RunningServer

LONG = "What is the capital of France? What is one plus two? Which day comes after Monday?"


@pytest.fixture
def slow_speech(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only so much sound is sent ahead, and made, that an answer goes on for a while."""
    monkeypatch.setattr("lluda.serving.realtime.answers.speech_pace.LEAD_SECONDS", 0.3)
    monkeypatch.setattr(Channel, "is_full", property(lambda channel: len(channel._events) >= 4))


def begin(talk: Talk, server: RunningServer) -> dict[str, Any]:
    """An answer that is being spoken."""
    talk.write(LONG)
    talk.send("response.create")
    created: dict[str, Any] = talk.until("response.created")["response"]
    talk.until("response.output_audio.delta")
    return created


def value(server: RunningServer, name: str) -> float:
    found: float | None = server.service.metrics.registry.get_sample_value(name)
    return found or 0.0


def test_speech_stops_the_answer(server: RunningServer, spoken: Any, slow_speech: None) -> None:
    cancelled = server.model.engine.stats().cancelled
    stops = value(server, "lluda_barge_in_stop_seconds_count")
    with talking(server) as talk:
        created = begin(talk, server)
        talk.append(np.concatenate([spoken, silence(0.1)]))
        talk.until("input_audio_buffer.speech_started")
        started = len(talk.events)
        done = talk.answer()
        assert done["id"] == created["id"]
        assert done["status"] == "cancelled"
        assert done["status_details"] == {"type": "cancelled", "reason": "turn_detected"}
        assert talk.types(started) == [
            "response.output_audio.done",
            "response.output_audio_transcript.done",
            "response.content_part.done",
            "response.output_item.done",
            "conversation.item.done",
            "response.done",
        ], "nothing of the answer leaves after speech has started"
        assert done["output"][0]["status"] == "incomplete"
        eventually(lambda: server.model.engine.stats().cancelled > cancelled)
        after = len(talk.events)
        talk.append(silence(0.9))
        second = talk.answer()
        assert second["status"] == "completed"
        assert all(event.get("response_id", second["id"]) == second["id"] for event in talk.events[after:])
        item = done["output"][0]
        whole = "".join(
            one["delta"] for one in talk.of("response.output_audio_transcript.delta") if one["item_id"] == item["id"]
        )
        assert whole.startswith(item["content"][0]["transcript"])
    assert value(server, "lluda_barge_in_stop_seconds_count") == stops + 1


def test_speech_may_be_told_not_to_stop_the_answer(server: RunningServer, spoken: Any, slow_speech: None) -> None:
    """The turn's answer waits, and further turns join it."""
    with talking(server) as talk:
        talk.update(audio={"input": {"turn_detection": {"type": "server_vad", "interrupt_response": False}}})
        first = begin(talk, server)
        talk.append(np.concatenate([spoken, silence(0.9), spoken, silence(0.9)]))
        done = talk.answer()
        assert (done["id"], done["status"]) == (first["id"], "completed")
        assert len(talk.of("input_audio_buffer.committed")) == 2
        assert talk.answer()["status"] == "completed"
        talk.write("One.")
        assert len(talk.of("response.created")) == 2


def test_cancel(server: RunningServer, slow_speech: None) -> None:
    with talking(server) as talk:
        for number in (None, "id"):
            created = begin(talk, server)
            start = len(talk.events)
            talk.send("response.cancel", **({"response_id": created["id"]} if number else {}))
            done = talk.answer()
            assert done["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
            talk.write("One.")
            end = next(
                index for index, event in enumerate(talk.events) if index >= start and event["type"] == "response.done"
            )
            assert not [event for event in talk.events[end:] if event["type"].startswith("response.output")]


def test_cancel_of_what_waits(server: RunningServer) -> None:
    """OUTPUT queued: nothing was said yet."""
    with talking(server) as talk:
        talk.write(LONG)
        talk.send("response.create")
        talk.send("response.cancel")
        assert talk.answer()["status"] == "cancelled"
        assert talk.ask("What is one plus two?")["status"] == "completed"


def test_cancel_of_nothing(server: RunningServer) -> None:
    with talking(server) as talk:
        error = talk.refused("response.cancel")
        assert error["code"] == "response_cancel_not_active"
        assert error["message"].startswith("Cancellation failed")
        assert talk.refused("response.cancel", response_id="resp_1")["code"] == "response_cancel_not_active"
        talk.send("output_audio_buffer.clear")
        assert talk.ask("What is one plus two?")["status"] == "completed"


def test_clear_of_what_sounds(server: RunningServer, slow_speech: None) -> None:
    with talking(server) as talk:
        begin(talk, server)
        talk.send("output_audio_buffer.clear")
        assert talk.answer()["status"] == "cancelled"


def test_one_answer_at_a_time(server: RunningServer, slow_speech: None) -> None:
    with talking(server) as talk:
        begin(talk, server)
        assert talk.refused("response.create")["code"] == "conversation_already_has_active_response"
        assert talk.answer()["status"] == "completed"


def test_the_client_says_what_was_heard(server: RunningServer) -> None:
    with talking(server) as talk:
        answer = talk.ask("What is one plus two?")
        item = answer["output"][0]
        text, seconds = item["content"][0]["transcript"], len(talk.sound()) / 48000
        half = int(500 * seconds)
        place = {"item_id": item["id"], "content_index": 0}
        talk.send("conversation.item.truncate", **place, audio_end_ms=half)
        assert talk.until("conversation.item.truncated")["audio_end_ms"] == half
        talk.send("conversation.item.retrieve", item_id=item["id"])
        kept = talk.until("conversation.item.retrieved")["item"]["content"][0]["transcript"]
        assert kept and text.startswith(kept) and len(kept) <= len(text) / 2
        assert text[len(kept)] == " ", "cut at the end of a word"
        talk.send("conversation.item.truncate", **place, audio_end_ms=10**6)
        assert talk.until("conversation.item.truncated")["audio_end_ms"] <= half, "beyond the end is the end"
        talk.send("conversation.item.truncate", **place, audio_end_ms=0)
        talk.until("conversation.item.truncated")
        talk.send("conversation.item.retrieve", item_id=item["id"])
        assert talk.until("conversation.item.retrieved")["item"]["content"][0]["transcript"] == ""


def test_what_cannot_be_truncated(server: RunningServer) -> None:
    with talking(server) as talk:
        talk.write("One.")
        item = talk.of("conversation.item.done")[-1]["item"]["id"]
        error = talk.refused("conversation.item.truncate", item_id=item, content_index=0, audio_end_ms=0)
        assert error["code"] == "unsupported_content_type"
        assert error["message"] == "Only model output audio messages can be truncated"
        error = talk.refused("conversation.item.truncate", item_id="item_9", content_index=0, audio_end_ms=0)
        assert error["code"] == "item_truncate_invalid_item_id"


def test_truncating_what_is_being_said_stops_it(server: RunningServer, slow_speech: None) -> None:
    with talking(server) as talk:
        begin(talk, server)
        item = talk.of("response.output_audio.delta")[0]["item_id"]
        talk.send("conversation.item.truncate", item_id=item, content_index=0, audio_end_ms=40)
        assert talk.answer()["status"] == "cancelled"
        talk.until("conversation.item.truncated")


def test_a_client_that_leaves_is_not_answered(server: RunningServer, slow_speech: None) -> None:
    with talking(server) as talk:
        begin(talk, server)
        talk.connection.socket.close()  # without a word


def test_sound_is_not_sent_far_ahead(slow_speech: None) -> None:
    async def leads() -> list[float]:
        pace, found = SpeechPace(), []
        for _ in range(6):
            await pace.take(0.2)
            found.append(pace.lead)
        return found

    found = asyncio.run(leads())
    assert max(found) <= 0.3
    assert max(found) > 0.25, "as far ahead as it may be"


def test_a_listener_who_had_to_wait_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def waited(seconds: float) -> float:
        pace, now = SpeechPace(), 100.0
        monkeypatch.setattr("lluda.serving.realtime.answers.speech_pace.time", SimpleNamespace(monotonic=lambda: now))
        await pace.take(0.2)
        now += seconds
        await pace.take(0.2)
        assert pace.lead == pytest.approx(0.2 if seconds > 0.2 else 0.4 - seconds)
        return pace.waited

    assert asyncio.run(waited(0.1)) == 0
    assert asyncio.run(waited(1.0)) == pytest.approx(0.8)


def test_a_session_tells_of_a_machine_that_speaks_too_slowly(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = 0.0

    async def take(self: SpeechPace, seconds: float) -> None:
        self.sent += seconds
        self.waited += waited * seconds

    monkeypatch.setattr(SpeechPace, "take", take)
    monkeypatch.setattr(server.service.sessions, "slow_speech", None)
    with talking(server) as talk:
        assert "speech_real_time_factor" not in talk.events[0]["session"]
        waited = 0.75
        talk.ask(LONG)
        assert talk.update()["speech_real_time_factor"] == pytest.approx(1.75)
        with talking(server) as other:
            assert other.events[0]["session"]["speech_real_time_factor"] == pytest.approx(1.75)
        waited = 0.0
        talk.ask(LONG)
        assert "speech_real_time_factor" not in talk.update()


def test_an_event_holds_little_sound(server: RunningServer) -> None:
    with talking(server) as talk:
        talk.ask(LONG)
        deltas = talk.of("response.output_audio.delta")
        assert deltas and all(len(event["delta"]) * 3 / 4 <= 0.2 * 48000 for event in deltas)
