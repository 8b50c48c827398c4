"""Answers of chat and responses that break off: a fault inside the engine, a client that leaves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI

from lluda.engine.sequence import Sequence
from tests.serving import openai_types
from tests.serving.asking import ask, outcomes, wait_for
from tests.serving.oracle import check_error, check_well, wait_until_idle
from tests.serving.running import RunningServer
from tests.serving.test_chat import ASKED, MODEL, UNCLEAR, body
from tests.serving.test_responses import QUESTION
from tests.serving.test_spoken_chat import STREAMED


class InjectedFault(Exception):
    """What no client should read."""


@pytest.fixture
def third_token_fails(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    original, taken = Sequence.take, list[int]()

    def take(self: Sequence, sampled: Any) -> Any:
        taken.append(1)
        if len(taken) == 3:
            raise InjectedFault(InjectedFault.__doc__)
        return original(self, sampled)

    with monkeypatch.context() as patch:
        patch.setattr(Sequence, "take", take)
        yield


@pytest.mark.usefixtures("third_token_fails")
def test_a_fault_in_a_chat_stream_is_raised_by_the_client(client: OpenAI) -> None:
    shown = ""
    with pytest.raises(openai.APIError, match="inside the server") as raised:
        for chunk in client.chat.completions.create(model=MODEL, messages=ASKED, stream=True):
            shown += chunk.choices[0].delta.content or ""
    assert shown
    assert raised.value.code == "internal_error"


@pytest.mark.usefixtures("third_token_fails")
def test_a_fault_in_a_response_stream_is_a_failed_response(server: RunningServer) -> None:
    text = server.post("/v1/responses", {"model": MODEL, "input": QUESTION, "stream": True}).text
    messages = [json.loads(one.split("data: ")[1]) for one in text.split("\n\n") if one]
    for message in messages:
        openai_types.response_event(message)
    assert [message["sequence_number"] for message in messages] == list(range(len(messages)))
    assert (messages[-1]["type"], messages[-1]["response"]["status"]) == ("response.failed", "failed")
    assert "no client" not in text
    assert messages[-1]["response"]["output"][0]["content"][0]["text"]


@pytest.mark.usefixtures("third_token_fails")
@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/chat/completions", {"messages": ASKED}),
        ("/v1/responses", {"input": QUESTION}),
        ("/v1/completions", {"prompt": "Two plus", "max_tokens": 5}),
    ],
)
def test_a_fault_of_a_whole_answer_is_500(server: RunningServer, path: str, asked: dict[str, Any]) -> None:
    check_error(server.post(path, {"model": MODEL, **asked}), 500, "internal_error")
    check_well(server)


LONG = {"messages": UNCLEAR, "max_tokens": 3000, "ignore_eos": True, "n": 2}


@pytest.mark.parametrize(
    ("path", "endpoint", "asked"),
    [
        ("/v1/chat/completions", "chat", body(**LONG)),
        ("/v1/chat/completions", "chat", body(**LONG, stream=True)),
        (
            "/v1/completions",
            "completions",
            {"model": MODEL, "prompt": [[5], [6]], "max_tokens": 3000, "ignore_eos": True},
        ),
    ],
)
def test_who_leaves_cancels_all_choices(server: RunningServer, path: str, endpoint: str, asked: dict[str, Any]) -> None:
    before, cancelled = outcomes(server, endpoint).get("cancelled", 0), server.model.engine.stats().cancelled
    with ask(server, asked, path):
        wait_for(lambda: server.model.engine.stats().running == 2)
    wait_until_idle(server)
    assert server.model.engine.stats().cancelled == cancelled + 2
    assert outcomes(server, endpoint)["cancelled"] == before + 1
    check_well(server)


def test_who_leaves_while_it_speaks_ends_the_speech(server: RunningServer) -> None:
    """E4."""
    asked = body(**STREAMED, stream=True, messages=UNCLEAR, max_tokens=400, ignore_eos=True)
    cancelled = server.model.engine.stats().cancelled
    with server.client.stream("POST", "/v1/chat/completions", json=asked) as response:
        for line in response.iter_lines():
            if '"data"' in line:
                break
    wait_until_idle(server)
    assert server.model.engine.stats().cancelled == cancelled + 1
    check_well(server)


def test_outcomes_say_how_requests_ended(server: RunningServer) -> None:
    def ended(**changes: Any) -> dict[str, float]:
        before = outcomes(server, "chat")
        server.post("/v1/chat/completions", body(**changes))
        wait_until_idle(server)
        return {name: value - before.get(name, 0) for name, value in outcomes(server, "chat").items()}

    empty = {"type": "object", "properties": {}, "additionalProperties": False}
    tools = [{"type": "function", "function": {"name": "f", "parameters": empty}}]
    for name, changes in {
        "stop": {},
        "length": {"max_tokens": 2},
        "tool_calls": {"tools": tools, "tool_choice": "required", "parallel_tool_calls": False},
    }.items():
        assert {key: value for key, value in ended(**changes).items() if value} == {name: 1}
