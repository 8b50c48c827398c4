"""Who may open a session, how, and how it ends."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from lluda.serving.http.errors import unavailable
from lluda.serving.http.keys import Keys
from lluda.serving.limits import Limits
from tests.serving.oracle import check_error
from tests.serving.realtime.talking import eventually, mute_connection, talking
from tests.serving.running import SECONDS, RunningServer, running_server

KEY = "key-of-this-test"


@pytest.fixture(scope="module")
def guarded() -> Iterator[RunningServer]:
    """A server with a key, an allowed origin and few, short sessions."""
    limits = Limits(realtime_sessions=1, realtime_ping_seconds=0.4, drain_seconds=5)
    with running_server(limits=limits, keys=Keys([KEY]), allow_origins=("https://chat.example",)) as running:
        yield running


def closed(server: RunningServer, path: str = "", **options: Any) -> tuple[dict[str, Any], int]:
    """The error that a refused session is told, and the code it is closed with."""
    with connect(f"ws://127.0.0.1:{server.port}/v1/realtime{path}", **options) as connection:
        error = json.loads(connection.recv(timeout=SECONDS))
        with pytest.raises(ConnectionClosed) as end:
            connection.recv(timeout=SECONDS)
    assert error["type"] == "error" and end.value.rcvd is not None
    return error["error"], end.value.rcvd.code


BEARER = {"Authorization": f"Bearer {KEY}"}


@pytest.mark.parametrize(
    "options",
    [
        {"additional_headers": BEARER},
        {"additional_headers": {"api-key": KEY}},
        {"subprotocols": ["realtime", f"openai-insecure-api-key.{KEY}"]},
        {"additional_headers": BEARER, "origin": "https://chat.example"},
    ],
)
def test_keys_that_open_a_session(guarded: RunningServer, options: dict[str, Any]) -> None:
    eventually(lambda: not len(guarded.service.sessions))
    with talking(guarded, **options) as talk:
        expected = "realtime" if "subprotocols" in options else None
        assert talk.connection.subprotocol == expected
        headers = talk.connection.response.headers
        assert "Sec-WebSocket-Extensions" not in headers


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"additional_headers": {"Authorization": "Bearer wrong"}},
        {"subprotocols": ["realtime", "openai-insecure-api-key.ek_wrong"]},
        {"subprotocols": ["realtime", "openai-insecure-api-key."]},
    ],
)
def test_keys_that_do_not(guarded: RunningServer, options: dict[str, Any]) -> None:
    error, code = closed(guarded, **options)
    assert (error["code"], error["type"], code) == ("invalid_api_key", "authentication_error", 1008)


def test_pages_of_others_do_not_reach_it(guarded: RunningServer, server: RunningServer) -> None:
    for running, options in ((guarded, {"additional_headers": BEARER}), (server, {})):
        with pytest.raises(InvalidStatus) as refused:
            connect(f"ws://127.0.0.1:{running.port}/v1/realtime", origin="https://evil.example", **options)
        assert refused.value.response.status_code == 403
        assert json.loads(refused.value.response.body)["error"]["code"] == "origin_not_allowed"
    with talking(server, origin=f"http://127.0.0.1:{server.port}"):
        pass


def test_more_sessions_than_there_may_be(guarded: RunningServer) -> None:
    eventually(lambda: not len(guarded.service.sessions))
    with talking(guarded, additional_headers=BEARER):
        error, code = closed(guarded, additional_headers=BEARER)
        assert (error["code"], code) == ("sessions_full", 1013)
        found = httpx2.get(f"{guarded.url}/metrics", headers=BEARER).text
        assert "lluda_realtime_sessions 1.0" in found


def test_models_by_name(server: RunningServer) -> None:
    for name in ("tiny-omni", "gpt-realtime-2.1"):
        with talking(server, f"?model={name}") as talk:
            assert talk.events[0]["session"]["model"] == server.service.names.first
    error, code = closed(server, "?model=llama")
    assert (error["code"], code) == ("model_not_found", 1008)


def test_a_session_lasts_as_long_as_it_may() -> None:
    with running_server(limits=Limits(realtime_session_seconds=0.5)) as running:
        error, code = {}, 0
        with talking(running) as talk, pytest.raises(ConnectionClosed) as end:
            while True:
                event = talk.receive()
                error = event.get("error", error)
        assert end.value.rcvd is not None
        code = end.value.rcvd.code
    assert (error["code"], code) == ("session_expired", 1000)


def test_sessions_end_with_the_server() -> None:
    with running_server(limits=Limits(drain_seconds=SECONDS)) as running, talking(running) as talk:
        talk.write("What is one plus two?")
        talk.send("response.create")
        talk.until("response.created")
        running.server.stop()
        assert talk.answer()["status"] == "completed", "what runs may end"
        assert talk.until("error")["error"]["code"] == "draining"
        with pytest.raises(ConnectionClosed) as end:
            talk.receive()
        assert end.value.rcvd is not None and end.value.rcvd.code == 1001


def test_sessions_are_told_that_the_engine_is_dead(server: RunningServer) -> None:
    with talking(server) as talk, pytest.raises(ConnectionClosed) as end:
        loop, error = server.server._loop, unavailable("engine_dead", "the engine has failed", retry=False)
        assert loop is not None
        loop.call_soon_threadsafe(server.service.sessions.end_all, 1011, error)
        assert talk.until("error")["error"]["code"] == "engine_dead"
        talk.receive()
    assert end.value.rcvd is not None and end.value.rcvd.code == 1011


def test_a_fault_of_the_session_itself_ends_it(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(_: Any) -> None:
        raise ValueError("a secret of the server")

    monkeypatch.setattr("lluda.serving.realtime.conversation.transcripts.Transcripts.run", broken)
    with connect(f"ws://127.0.0.1:{server.port}/v1/realtime") as connection, pytest.raises(ConnectionClosed) as end:
        errors = []
        while True:
            event = json.loads(connection.recv(timeout=SECONDS))
            errors += [event["error"]] if event["type"] == "error" else []
    assert [error["code"] for error in errors] == ["internal_error"] and "secret" not in errors[0]["message"]
    assert end.value.rcvd is not None and end.value.rcvd.code == 1011


def test_a_peer_that_does_not_answer_pings_is_given_up(guarded: RunningServer) -> None:
    eventually(lambda: not len(guarded.service.sessions))
    with mute_connection(guarded, f"openai-insecure-api-key.{KEY}"):
        eventually(lambda: len(guarded.service.sessions) == 1)
        eventually(lambda: not len(guarded.service.sessions))


def test_plain_http_is_told_to_upgrade(server: RunningServer) -> None:
    check_error(server.get("/v1/realtime"), 426, "upgrade_required", None)


def test_client_secrets(guarded: RunningServer) -> None:
    path = f"{guarded.url}/v1/realtime/client_secrets"
    check_error(httpx2.post(path, json={}), 401, "invalid_api_key", None)
    wish = {"type": "realtime", "instructions": "Be brief.", "output_modalities": ["text"]}
    answer = httpx2.post(path, json={"session": wish}, headers=BEARER).json()
    assert answer["value"].startswith("ek_") and 590 < answer["expires_at"] - time.time() <= 600
    assert answer["session"]["instructions"] == "Be brief."
    value = answer["value"]
    for options in (
        {"additional_headers": {"Authorization": f"Bearer {value}"}},
        {"subprotocols": ["realtime", f"openai-insecure-api-key.{value}"]},
    ):
        eventually(lambda: not len(guarded.service.sessions))
        with talking(guarded, **options) as talk:
            session = talk.events[0]["session"]
            assert (session["instructions"], session["output_modalities"]) == ("Be brief.", ["text"])
    check_error(
        httpx2.get(f"{guarded.url}/v1/models", headers={"Authorization": f"Bearer {value}"}),
        401,
        "invalid_api_key",
        None,
    )
    bad = {"expires_after": {"anchor": "created_at", "seconds": 1}}
    check_error(httpx2.post(path, json=bad, headers=BEARER), 400, "invalid_value", "expires_after.seconds")


def test_a_secret_that_is_over(guarded: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = guarded.service.client_secrets
    value, secret = secrets.issue(None)
    assert secrets.find(value) == secret
    monkeypatch.setattr(secrets, "_clock", lambda: time.time() + 601)
    assert secrets.find(value) is None
    error, code = closed(guarded, additional_headers={"Authorization": f"Bearer {value}"})
    assert (error["code"], code) == ("invalid_api_key", 1008)


def test_four_at_once_answer_as_one_alone(server: RunningServer) -> None:
    """Each gets the words and the sound that it gets alone. Whether a listener waits hangs on the cores: `lluda bench
    --serve --turns` measures that."""
    questions = (
        "What is one plus two?",
        "What is the capital of France?",
        "Which day comes after Monday?",
        "What is the capital of Norway?",
    )

    def answer(question: str) -> tuple[str, bytes]:
        with talking(server) as talk:
            response = talk.ask(question)
            return response["output"][0]["content"][0]["transcript"], talk.sound()

    alone = [answer(question) for question in questions]
    together: dict[int, tuple[str, bytes]] = {}
    threads = [
        threading.Thread(target=lambda index=index: together.__setitem__(index, answer(questions[index])))  # type: ignore[misc]
        for index in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert [together[index] for index in range(4)] == alone
