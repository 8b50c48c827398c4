"""The input machine: turns that are found, turns that are committed, and what is told of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from lluda.serving.limits import Limits
from tests.serving.realtime.conftest import silence
from tests.serving.realtime.talking import pcm, talking
from tests.serving.running import SECONDS, RunningServer, running_server

TURN = [
    "input_audio_buffer.speech_started",
    "input_audio_buffer.speech_stopped",
    "input_audio_buffer.committed",
    "conversation.item.added",
    "conversation.item.done",
    "response.created",
    "response.output_item.added",
    "conversation.item.added",
    "response.content_part.added",
]
SPOKEN_END = [
    "response.output_audio.done",
    "response.output_audio_transcript.done",
    "response.content_part.done",
    "response.output_item.done",
    "conversation.item.done",
    "response.done",
]


def found_turns(server: RunningServer) -> float:
    return server.service.metrics.registry.get_sample_value("lluda_vad_turns_total") or 0.0


def test_a_turn_that_is_found_is_answered(server: RunningServer, spoken: Any) -> None:
    """INPUT idle -> speaking -> idle; OUTPUT none -> queued -> streaming -> none."""
    with talking(server) as talk:
        start, turns = len(talk.events), found_turns(server)
        talk.append(np.concatenate([silence(0.5), spoken, silence(0.9)]))
        response = talk.answer()
        assert found_turns(server) == turns + 1
        kinds = talk.types(start)
        assert kinds[: len(TURN)] == TURN
        assert kinds[-len(SPOKEN_END) :] == SPOKEN_END
        deltas = set(kinds[len(TURN) : -len(SPOKEN_END)])
        assert deltas == {"response.output_audio.delta", "response.output_audio_transcript.delta"}
        started, stopped = talk.of(TURN[0])[0], talk.of(TURN[1])[0]
        committed, added = talk.of(TURN[2])[0], talk.of("conversation.item.added")[0]
        assert started["item_id"] == stopped["item_id"] == committed["item_id"] == added["item"]["id"]
        assert committed["previous_item_id"] is added["previous_item_id"] is None
        assert 0 <= started["audio_start_ms"] < 600
        assert stopped["audio_end_ms"] - 500 * 1.5 < 500 + 1000 * len(spoken) / 24000 + 200
        assert response["status"] == "completed"
        item = response["output"][0]
        said = item["content"][0]["transcript"]
        assert said and said == "".join(one["delta"] for one in talk.of("response.output_audio_transcript.delta"))
        assert talk.of("conversation.item.added")[1]["previous_item_id"] == added["item"]["id"]
        assert len(talk.sound()) > 0
        assert talk.of("response.output_item.added")[0]["item"]["status"] == "in_progress"
        assert talk.of("response.output_item.done")[0]["item"] == item


def test_the_answer_is_that_of_the_model_to_the_same_sound(server: RunningServer, spoken: Any) -> None:
    with talking(server) as talk:
        talk.update(audio={"input": {"turn_detection": None, "format": {"type": "audio/pcm", "rate": 16000}}})
        talk.send_pcm(pcm(spoken[::2]))
        talk.send("input_audio_buffer.commit")
        talk.send("response.create")
        answer = talk.answer()["output"][0]["content"][0]["transcript"]
    heard = np.frombuffer(pcm(spoken[::2]), "<i2").astype(np.float32) / 32768
    message = {"role": "user", "content": [{"type": "audio", "audio": heard, "sampling_rate": 16000}]}
    assert answer == server.model.chat([message]).text


def test_a_turn_is_heard_before_it_is_known_to_be_over(server: RunningServer, spoken: Any) -> None:
    """At the first pause all is made ready: then the answer has its own first row to compute."""
    with talking(server) as talk:
        talk.update(instructions="Be brief.")
        for _ in range(2):
            talk.append(np.concatenate([spoken, silence(0.25)]))
            talk.until("input_audio_buffer.speech_started")
            talk.refused("conversation.item.retrieve", item_id="none")  # by now all was heard
            (session,) = server.service.sessions._open
            assert session._turns._turn.spoken.settled(SECONDS)  # type: ignore[attr-defined]
            talk.append(silence(0.7))
            usage = talk.answer()["usage"]
            assert usage["input_token_details"]["cached_tokens"] == usage["input_tokens"] - 1


def test_push_to_talk(server: RunningServer, spoken: Any) -> None:
    with talking(server) as talk:
        talk.update(audio={"input": {"turn_detection": None}})
        start = len(talk.events)
        talk.append(np.concatenate([spoken, silence(2)]))
        talk.send("input_audio_buffer.commit")
        talk.until("conversation.item.done")
        assert talk.types(start) == TURN[2:5]
        talk.send("response.create")
        assert talk.answer()["status"] == "completed"


def test_clear_forgets(server: RunningServer, spoken: Any) -> None:
    with talking(server) as talk:
        talk.update(audio={"input": {"turn_detection": None}})
        talk.append(spoken)
        talk.send("input_audio_buffer.clear")
        talk.until("input_audio_buffer.cleared")
        error = talk.refused("input_audio_buffer.commit")
        assert error["code"] == "input_audio_buffer_commit_empty"
        talk.append(silence(0.05))
        assert talk.refused("input_audio_buffer.commit")["code"] == "input_audio_buffer_commit_empty"


def test_clear_ends_a_turn_that_was_found(server: RunningServer, spoken: Any) -> None:
    with talking(server) as talk:
        talk.append(spoken)
        talk.until("input_audio_buffer.speech_started")
        talk.send("input_audio_buffer.clear")
        talk.until("input_audio_buffer.cleared")
        talk.append(silence(1.5))
        talk.send("response.create", response={"output_modalities": ["text"]})
        talk.answer()
        assert not talk.of("input_audio_buffer.committed")


def test_a_client_may_commit_while_turns_are_found(server: RunningServer, spoken: Any) -> None:
    with talking(server) as talk:
        assert talk.refused("input_audio_buffer.commit")["code"] == "input_audio_buffer_commit_empty"
        talk.append(spoken)
        started = talk.until("input_audio_buffer.speech_started")
        talk.send("input_audio_buffer.commit")
        assert talk.until("input_audio_buffer.committed")["item_id"] == started["item_id"]
        talk.until("conversation.item.done")
        talk.append(silence(1.5))
        talk.write("One.")
        assert not talk.of("response.created"), "a commit of the client is not answered by itself"
        assert not talk.of("input_audio_buffer.speech_stopped")


def test_no_response_where_none_is_wanted(server: RunningServer, spoken: Any) -> None:
    with talking(server) as talk:
        talk.update(audio={"input": {"turn_detection": {"type": "server_vad", "create_response": False}}})
        talk.append(np.concatenate([spoken, silence(0.9)]))
        talk.until("conversation.item.done")
        talk.write("One.")
        assert not talk.of("response.created")


def test_semantic_turns(server: RunningServer, spoken: Any) -> None:
    with talking(server) as talk:
        session = talk.update(audio={"input": {"turn_detection": {"type": "semantic_vad"}}})
        detection = session["audio"]["input"]["turn_detection"]
        assert detection == {
            "type": "semantic_vad",
            "eagerness": "auto",
            "create_response": True,
            "interrupt_response": True,
        }
        talk.append(np.concatenate([spoken, silence(3.2)]))
        assert talk.answer()["status"] == "completed"


def test_rules_that_change_begin_anew(server: RunningServer, spoken: Any) -> None:
    with talking(server) as talk:
        talk.append(spoken)
        talk.until("input_audio_buffer.speech_started")
        talk.update(audio={"input": {"turn_detection": None}})
        talk.append(silence(1.5))
        talk.send("input_audio_buffer.commit")  # the buffer is kept
        talk.until("conversation.item.done")
        assert not talk.of("input_audio_buffer.speech_stopped")


def test_a_user_who_says_nothing_is_asked(server: RunningServer) -> None:
    with talking(server) as talk:
        detection = {"type": "server_vad", "idle_timeout_ms": 5000}
        talk.update(output_modalities=["text"], audio={"input": {"turn_detection": detection}})
        talk.ask("What is one plus two?")
        start = len(talk.events)
        talk.append(silence(5.5))
        timeout = talk.until("input_audio_buffer.timeout_triggered")
        assert timeout["audio_end_ms"] - timeout["audio_start_ms"] >= 5000
        assert talk.until("input_audio_buffer.committed")["item_id"] == timeout["item_id"]
        assert talk.answer()["status"] == "completed"
        assert talk.types(start)[1] == "input_audio_buffer.committed"


def test_the_buffer_is_bounded() -> None:
    with running_server(limits=Limits(realtime_buffer_seconds=10)) as running, talking(running) as talk:
        talk.update(audio={"input": {"turn_detection": None, "format": {"type": "audio/pcmu"}}})
        talk.send_pcm(b"\xff" * (8000 * 10))
        talk.send_pcm(b"\xff" * 8000)
        assert talk.until("error")["error"]["code"] == "input_audio_buffer_full"
        talk.send("input_audio_buffer.clear")
        talk.until("input_audio_buffer.cleared")


def test_formats_of_sound(server: RunningServer, spoken: Any) -> None:
    """The same question in each format gets the same answer, in as many samples of it."""
    lengths = {}
    for name, rate in (("audio/pcm", 24000), ("audio/pcmu", 8000), ("audio/pcma", 8000)):
        with talking(server) as talk:
            sound = {"format": {"type": name}}
            talk.update(audio={"input": {**sound, "turn_detection": None}, "output": sound})
            talk.ask("What is one plus two?")
            lengths[name] = len(talk.sound()) / (2 if name == "audio/pcm" else 1) / rate
            talk.send_pcm(pcm(spoken) if name == "audio/pcm" else b"\xd5" * 8000)
            talk.send("input_audio_buffer.commit")
            talk.until("conversation.item.done")
    assert max(lengths.values()) - min(lengths.values()) < 0.001
