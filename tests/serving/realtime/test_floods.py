"""What a broken or hostile client sends: it is told, or closed, and nobody else feels it."""

from __future__ import annotations

import base64
import json
import random
import resource
import threading
from contextlib import suppress
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from lluda.serving.limits import Limits
from tests.serving.realtime.talking import eventually, mute_connection, talking, user_text
from tests.serving.running import RunningServer, running_server

JUNK = (
    ("{", "invalid_json"),
    ("[]", "invalid_json"),
    ('"a"', "invalid_json"),
    ('{"type": "session.update", "type": "x"}', "invalid_json"),
    ('{"type": NaN}', "invalid_json"),
    ("[" * 10000, "invalid_json"),
    ("{}", "missing_required_parameter"),
    ('{"type": 3}', "unknown_event"),
    ('{"type": "session.begin"}', "unknown_event"),
    ('{"type": "input_audio_buffer.append"}', "missing_required_parameter"),
    ('{"type": "input_audio_buffer.append", "audio": 3}', "invalid_value"),
    ('{"type": "input_audio_buffer.append", "audio": "%%%%"}', "invalid_media"),
    ('{"type": "input_audio_buffer.append", "audio": "AAA="}', None),
    ('{"type": "input_audio_buffer.append", "audio": "AA=="}', "invalid_media"),
    ('{"type": "input_audio_buffer.append", "audio": "AAAA"}', "invalid_media"),
    ('{"type": "input_audio_buffer.commit", "more": 1}', "unknown_parameter"),
    ('{"type": "session.update"}', "missing_required_parameter"),
    ('{"type": "session.update", "session": null}', "invalid_value"),
    ('{"type": "session.update", "session": {"audio": []}}', "invalid_value"),
    ('{"type": "conversation.item.create", "item": {}}', "unsupported_value"),
    ('{"type": "response.create", "response": {"input": [{"type": "message"}]}}', "missing_required_parameter"),
    ('{"type": "response.create", "response": {"metadata": {"a": 1}}}', "invalid_value"),
    ('{"type": "conversation.item.truncate", "item_id": "a", "content_index": -1, "audio_end_ms": 0}', "invalid_value"),
    ('{"type": "conversation.item.delete", "item_id": ""}', "invalid_value"),
    ('{"type": "\\ud800"}', "invalid_json"),
)


def test_events_that_are_none(server: RunningServer) -> None:
    """E19: each is answered with an error event, and the session goes on."""
    with talking(server) as talk:
        for text, code in JUNK:
            talk.connection.send(text)
            if code is not None:
                assert talk.until("error")["error"]["code"] == code, text
        assert talk.ask("What is one plus two?")["status"] == "completed"


def test_binary_frames_end_the_session(server: RunningServer) -> None:
    with talking(server) as talk, pytest.raises(ConnectionClosed) as end:
        talk.connection.send(b"\x00" * 100)
        talk.receive()
    assert end.value.rcvd is not None and end.value.rcvd.code == 1003


def test_frames_that_are_too_large_end_the_session() -> None:
    with running_server(limits=Limits(realtime_event_bytes=100_000)) as running:
        with talking(running) as talk, pytest.raises(ConnectionClosed) as end:
            talk.connection.send(" " * 100_001)
            talk.receive()
        assert end.value.rcvd is not None and end.value.rcvd.code == 1009


def test_text_that_is_no_text_ends_the_session(server: RunningServer) -> None:
    with talking(server) as talk, pytest.raises(ConnectionClosed) as end:
        talk.connection.send(b"\xff\xfe", text=True)
        talk.receive()
    assert end.value.rcvd is not None and end.value.rcvd.code == 1007


def test_random_events_do_no_harm(server: RunningServer) -> None:
    """Whatever comes in whatever order, the session answers afterwards, and every event is one of OpenAI's."""
    chance = random.Random(7)
    sound = base64.b64encode(bytes(4800)).decode()
    with talking(server) as talk:
        for _ in range(300):
            ids = [event["item"]["id"] for event in talk.of("conversation.item.added")] or ["item_1"]
            events: list[dict[str, Any]] = [
                {"type": "input_audio_buffer.append", "audio": sound},
                {"type": "input_audio_buffer.commit"},
                {"type": "input_audio_buffer.clear"},
                {"type": "conversation.item.create", "item": user_text("What is one plus two?")},
                {"type": "conversation.item.delete", "item_id": chance.choice(ids)},
                {"type": "conversation.item.retrieve", "item_id": chance.choice(ids)},
                {
                    "type": "conversation.item.truncate",
                    "item_id": chance.choice(ids),
                    "content_index": 0,
                    "audio_end_ms": 100,
                },
                {"type": "response.create"},
                {"type": "response.create", "response": {"conversation": "none", "output_modalities": ["text"]}},
                {"type": "response.cancel"},
                {
                    "type": "session.update",
                    "session": {"type": "realtime", "audio": {"input": {"turn_detection": None}}},
                },
                {
                    "type": "session.update",
                    "session": {"type": "realtime", "audio": {"input": {"turn_detection": {"type": "server_vad"}}}},
                },
            ]
            talk.connection.send(json.dumps(chance.choice(events)))
            while True:
                try:
                    talk.receive(0.001)
                except TimeoutError:
                    break
        talk.send("response.cancel")
        talk.send("conversation.item.create", item={"id": "the_last", **user_text("What is one plus two?")})
        while talk.receive().get("item", {}).get("id") != "the_last":
            pass
        eventually(lambda: talk_idle(server))
        talk.send("response.create", response={"metadata": {"who": "last"}})
        while (event := talk.receive())["type"] != "response.done" or event["response"]["metadata"] is None:
            pass
        assert event["response"]["status"] == "completed"


def talk_idle(server: RunningServer) -> bool:
    return all(session.is_idle for session in server.service.sessions._open)


def test_many_tiny_appends_take_no_memory(server: RunningServer) -> None:
    tiny = json.dumps({"type": "input_audio_buffer.append", "audio": base64.b64encode(bytes(8)).decode()})
    with talking(server) as talk, talking(server) as other:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(10_000):
            talk.connection.send(tiny)
        assert other.ask("What is one plus two?")["status"] == "completed", "others are answered meanwhile"
        assert talk.ask("What is one plus two?")["status"] == "completed"
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown < 60_000, f"{grown} kB"


@pytest.mark.parametrize("end", ["clear", "commit"])
def test_turns_without_end_take_no_threads(server: RunningServer, end: str) -> None:
    """Each is heard while it is spoken."""
    sound = json.dumps({"type": "input_audio_buffer.append", "audio": base64.b64encode(bytes(9600)).decode()})
    with talking(server) as talk:
        talk.update(audio={"input": {"turn_detection": None}})
        most = 0
        for _ in range(80):
            talk.connection.send(sound)
            talk.send(f"input_audio_buffer.{end}")
            most = max(most, sum(thread.name == "lluda listener" for thread in threading.enumerate()))
        for _ in range(80):
            talk.until("input_audio_buffer.cleared" if end == "clear" else "input_audio_buffer.committed")
            most = max(most, sum(thread.name == "lluda listener" for thread in threading.enumerate()))
        assert 0 < most <= 12
        assert talk.ask("What is one plus two?", input=[user_text("What is one plus two?")])["status"] == "completed"


def test_items_without_end_are_refused() -> None:
    with running_server(limits=Limits(realtime_items=20)) as running, talking(running) as talk:
        for _ in range(20):
            talk.write("a")
        error = talk.refused("conversation.item.create", item=user_text("b"))
        assert error["code"] == "conversation_full"
        talk.send("response.create")
        assert talk.answer()["status_details"]["error"]["code"] == "conversation_full"


def test_silence_for_long_takes_no_memory(server: RunningServer) -> None:
    """While nobody speaks, the buffer holds a minute."""
    with talking(server) as talk:
        for _ in range(80):
            talk.send_pcm(bytes(48000))
        talk.write("One.")
        (session,) = server.service.sessions._open
        buffer = session._turns._buffer  # type: ignore[attr-defined]
        assert buffer.end > 79 * 16000 and buffer.end - buffer.start <= 60.2 * 16000


def test_a_client_that_reads_nothing_is_closed() -> None:
    """More waits for it than may: the session ends, and its answers with it."""
    with running_server(limits=Limits(realtime_unread_bytes=300_000, write_stall_seconds=2)) as running:
        with mute_connection(running) as (connection, protocol):
            eventually(lambda: len(running.service.sessions) == 1)
            text = json.dumps({"type": "conversation.item.create", "item": user_text("a" * 20_000)}).encode()
            with suppress(OSError):  # by then the server does not read either
                for _ in range(1000):
                    protocol.send_text(text)
                    connection.sendall(b"".join(protocol.data_to_send()))
                    if not len(running.service.sessions):
                        break
            eventually(lambda: not len(running.service.sessions))
            while protocol.close_rcvd is None:
                protocol.receive_data(connection.recv(1 << 16))
        assert protocol.close_rcvd.code == 1008


def test_pings_without_end_are_answered_within_bounds(server: RunningServer) -> None:
    with talking(server) as talk:
        for _ in range(2000):
            talk.connection.ping()
        assert talk.ask("What is one plus two?")["status"] == "completed"


@pytest.mark.parametrize("where", ["answering", "client_items"])
def test_errors_of_ours_end_no_session(server: RunningServer, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """OUTPUT queued, engine error: response.done failed; the session lives. The client learns an id, no more."""

    def broken(*_: Any) -> Any:
        raise RuntimeError("a secret of the server")

    with talking(server) as talk:
        if where == "answering":
            with monkeypatch.context() as patch:
                patch.setattr("lluda.serving.realtime.answers.answering.engine_requests", broken)
                details = talk.ask("What is one plus two?")["status_details"]
            assert details["type"] == "failed"
            error = details["error"]
        else:
            with monkeypatch.context() as patch:
                patch.setattr("lluda.serving.realtime.conversation.conversation_edits.client_item", broken)
                error = talk.refused("conversation.item.create", item=user_text("a"))
        assert error["code"] == "internal_error" and "secret" not in error["message"]
        assert talk.ask("What is one plus two?")["status"] == "completed"
