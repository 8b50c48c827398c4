"""POST /v1/responses as OpenAI's own client sees it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.serving import openai_types
from tests.serving.oracle import check_error, check_well
from tests.serving.running import RunningServer
from tests.serving.test_chat import ASKED, MODEL, SUM
from tests.serving.test_tools import WEATHER, check_arguments

QUESTION = "What is two plus three?"
TOOLS: list[Any] = [{"type": "function", "name": "get_weather", "parameters": WEATHER, "strict": True}]
NAMED: Any = {"type": "function", "name": "get_weather"}


def post(server: RunningServer, **changes: Any) -> dict[str, Any]:
    response = server.post("/v1/responses", {"model": MODEL, "input": QUESTION, **changes})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    openai_types.response(answer)
    return answer


def events(server: RunningServer, **changes: Any) -> list[dict[str, Any]]:
    response = server.post("/v1/responses", {"model": MODEL, "input": QUESTION, "stream": True, **changes})
    found = []
    for message in response.text.split("\n\n"):
        if message:
            kind, data = message.split("\n")
            found.append(json.loads(data.removeprefix("data: ")))
            assert kind == f"event: {found[-1]['type']}"
            openai_types.response_event(found[-1])
    return found


def test_a_text_is_answered(client: OpenAI, server: RunningServer) -> None:
    answer = client.responses.create(model=MODEL, input=QUESTION)
    assert (answer.output_text, answer.status) == (SUM, "completed")
    inside = server.model.chat(ASKED)
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (inside.prompt_tokens, len(inside.token_ids))
    check_well(server)


def test_what_was_asked_is_repeated_and_nothing_is_stored(server: RunningServer) -> None:
    answer = post(server, instructions="Be short.", temperature=0.0, store=True, tools=TOOLS, tool_choice="none")
    assert answer["store"] is False
    assert (answer["instructions"], answer["temperature"], answer["tool_choice"]) == ("Be short.", 0.0, "none")
    assert answer["tools"][0]["name"] == "get_weather"


def test_a_stream_says_what_a_whole_response_says(client: OpenAI) -> None:
    with client.responses.stream(model=MODEL, input=QUESTION) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == final.output_text == SUM


def test_the_asynchronous_client_reads_events(server: RunningServer) -> None:
    async def ask() -> list[str]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            stream = await client.responses.create(model=MODEL, input=QUESTION, stream=True)
            return [event.type async for event in stream]

    kinds = asyncio.run(ask())
    assert list(dict.fromkeys(kinds)) == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]


def test_items_are_one_conversation(client: OpenAI, server: RunningServer) -> None:
    items: list[Any] = [
        {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"city": "Oslo"}', "id": "fc_1"},
        {"type": "function_call", "call_id": "c2", "name": "look", "arguments": '{"city": "Rome"}'},
        {"type": "function_call_output", "call_id": "c1", "output": "rain"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "sun"}]},
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Rain and sun.", "annotations": []}],
        },
        {"type": "message", "role": "user", "content": QUESTION},
    ]
    answer = client.responses.create(model=MODEL, input=items, instructions="Be short.", max_output_tokens=8)
    calls = [
        {"type": "function", "function": {"name": "look", "arguments": {"city": city}}} for city in ("Oslo", "Rome")
    ]
    inside = server.model.chat(
        [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": "", "tool_calls": calls},
            {"role": "tool", "content": "rain"},
            {"role": "tool", "content": "sun"},
            {"role": "assistant", "content": "Rain and sun."},
            *ASKED,
        ],
        max_tokens=8,
    )
    assert answer.output_text == inside.text
    assert answer.usage is not None
    assert answer.usage.input_tokens == inside.prompt_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_a_function_is_called(server: RunningServer, stream: bool) -> None:
    changes = {"tools": TOOLS, "tool_choice": NAMED}
    if stream:
        told = events(server, **changes)
        (done,) = [event for event in told if event["type"] == "response.function_call_arguments.done"]
        deltas = [event["delta"] for event in told if event["type"] == "response.function_call_arguments.delta"]
        assert "".join(deltas) == done["arguments"]
        assert len(deltas) > 3
        answer = told[-1]["response"]
    else:
        answer = post(server, **changes)
    (call,) = answer["output"]
    assert (call["type"], call["name"], call["status"]) == ("function_call", "get_weather", "completed")
    check_arguments(call["arguments"])


def test_what_a_call_gave_is_sent_back_as_it_came(client: OpenAI) -> None:
    called = client.responses.create(model=MODEL, input=QUESTION, tools=TOOLS, tool_choice=NAMED)
    (call,) = called.output
    assert call.type == "function_call"
    items: list[Any] = [
        {"role": "user", "content": QUESTION},
        call,
        {"type": "function_call_output", "call_id": call.call_id, "output": "rain"},
    ]
    answer = client.responses.create(model=MODEL, input=items, tools=TOOLS, max_output_tokens=5)
    assert answer.output_text


def test_a_schema_is_kept_to(server: RunningServer) -> None:
    form = {"format": {"type": "json_schema", "name": "weather", "schema": WEATHER}}
    check_arguments(post(server, text=form, max_output_tokens=200)["output"][0]["content"][0]["text"])


def test_an_answer_that_is_cut_is_incomplete(server: RunningServer) -> None:
    answer = post(server, max_output_tokens=2)
    assert answer["status"] == answer["output"][0]["status"] == "incomplete"
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
    assert events(server, max_output_tokens=2)[-1]["type"] == "response.incomplete"


def test_logprobs_come_with_text(server: RunningServer) -> None:
    asked = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    part = post(server, **asked)["output"][0]["content"][0]
    assert "".join(entry["token"] for entry in part["logprobs"]) == SUM
    assert all(len(entry["top_logprobs"]) == 2 for entry in part["logprobs"])
    told = events(server, **asked)
    deltas = [entry for event in told if event["type"] == "response.output_text.delta" for entry in event["logprobs"]]
    assert [entry["logprob"] for entry in deltas] == [entry["logprob"] for entry in part["logprobs"]]


BAD = [
    ({"previous_response_id": "resp_1"}, "previous_response_id", "unsupported_value"),
    ({"conversation": "c"}, "conversation", "unsupported_value"),
    ({"background": True}, "background", "unsupported_value"),
    ({"prompt": {"id": "p"}}, "prompt", "unsupported_value"),
    ({"truncation": "auto"}, "truncation", "unsupported_value"),
    ({"tools": [{"type": "web_search"}]}, "tools[0]", "unsupported_value"),
    ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice", "invalid_value"),
    ({"include": ["file_search_call.results"]}, "include[0]", "unsupported_value"),
    ({"input": []}, "input", "invalid_value"),
    ({"input": 3}, "input", "invalid_value"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]", "unsupported_value"),
    ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0]", "unsupported_value"),
    ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role", "invalid_value"),
    ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id", "missing_required_parameter"),
    ({"text": {"format": {"type": "yaml"}}}, "text.format", "invalid_value"),
    ({"top_logprobs": 21}, "top_logprobs", "invalid_value"),
    ({"messages": ASKED}, "messages", "unknown_parameter"),
    ({"max_output_tokens": 0}, "max_output_tokens", "invalid_value"),
]


@pytest.mark.parametrize(("changes", "param", "code"), BAD)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_not_served_is_refused(
    server: RunningServer, changes: dict[str, Any], param: str, code: str, stream: bool
) -> None:
    body = {"model": MODEL, "input": QUESTION, "stream": stream, **changes}
    check_error(server.post("/v1/responses", body), 400, code, param)
    check_well(server)


def test_the_client_raises_its_own_classes(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        client.responses.create(model=MODEL, input=QUESTION, previous_response_id="resp_1")
