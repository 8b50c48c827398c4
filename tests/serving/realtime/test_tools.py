"""Functions in a session: called, answered, and never as if they were called when they were not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.serving.realtime.talking import Talk, talking
from tests.serving.running import RunningServer

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
CALL = [
    "response.created",
    "response.output_item.added",
    "conversation.item.added",
    "response.function_call_arguments.delta",
    "response.function_call_arguments.done",
    "response.output_item.done",
    "conversation.item.done",
    "response.done",
]


def call(talk: Talk, **response: Any) -> dict[str, Any]:
    """The call that the model must make."""
    answer = talk.ask("What is the weather in Oslo?", tool_choice="required", parallel_tool_calls=False, **response)
    assert answer["status"] == "completed"
    item: dict[str, Any] = answer["output"][0]
    return item


def test_a_call_is_told_as_clients_want_it(server: RunningServer) -> None:
    with talking(server) as talk:
        talk.update(tools=[WEATHER])
        item = call(talk)
        assert talk.types()[-len(CALL) :] == CALL
        assert item["type"] == "function_call" and item["status"] == "completed" and item["name"] == "get_weather"
        assert json.loads(item["arguments"]) == {"city": "Oslo"}
        added, done = talk.of("response.output_item.added")[0]["item"], talk.of("response.output_item.done")[0]["item"]
        assert (added["status"], added["arguments"]) == ("in_progress", "") and done == item
        assert talk.of("conversation.item.added")[-1]["item"] == added
        deltas = talk.of("response.function_call_arguments.delta")
        assert "".join(one["delta"] for one in deltas) == item["arguments"]
        told = talk.of("response.function_call_arguments.done")[0]
        assert (told["call_id"], told["name"], told["arguments"]) == (item["call_id"], item["name"], item["arguments"])
        assert not talk.sound(), "a call is not spoken"


def test_the_answer_knows_what_the_function_gave(server: RunningServer) -> None:
    with talking(server) as talk:
        talk.update(tools=[WEATHER])
        item = call(talk)
        output = {"type": "function_call_output", "call_id": item["call_id"], "output": '{"sky": "clear"}'}
        talk.send("conversation.item.create", item=output)
        told = talk.until("conversation.item.done")["item"]
        assert {name: told[name] for name in output} == output
        talk.send("response.create", response={"output_modalities": ["text"], "tool_choice": "none"})
        answer = talk.answer()
        arguments = json.loads(item["arguments"])
        messages = [
            {"role": "user", "content": "What is the weather in Oslo?"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {
                        "id": item["call_id"],
                        "type": "function",
                        "function": {"name": item["name"], "arguments": arguments},
                    }
                ],
            },
            {"role": "tool", "content": output["output"], "tool_call_id": item["call_id"]},
        ]
        assert answer["usage"]["input_tokens"] == len(server.model.chat_prompt(messages).ids)
        assert answer["output"][0]["content"][0]["text"] == server.model.chat(messages).text


def test_tools_in_chats_form_and_named(server: RunningServer) -> None:
    function = {name: value for name, value in WEATHER.items() if name != "type"}
    with talking(server) as talk:
        session = talk.update(tools=[{"type": "function", "function": function}])
        assert session["tools"] == [WEATHER]
        choice = {"type": "function", "function": {"name": "get_weather"}}
        answer = talk.ask("What is the weather in Oslo?", tool_choice=choice)
        assert [one["name"] for one in answer["output"]] == ["get_weather"]


def test_several_calls_are_an_item_each(server: RunningServer) -> None:
    other = {**WEATHER, "name": "get_time"}
    with talking(server) as talk:
        talk.update(tools=[WEATHER, other])
        answer = talk.ask("What is the weather in Oslo?", tool_choice="required", max_output_tokens=200)
        added = talk.of("response.output_item.added")
        assert [one["output_index"] for one in added] == list(range(len(added)))
        calls = [one for one in answer["output"] if one["type"] == "function_call" and one["status"] == "completed"]
        assert len({one["call_id"] for one in calls}) == len(calls) >= 1


@pytest.mark.parametrize("most", [12, 16])
def test_a_call_that_is_cut_off_is_none(server: RunningServer, most: int) -> None:
    with talking(server) as talk:
        talk.update(tools=[WEATHER])
        answer = talk.ask("What is the weather in Oslo?", tool_choice="required", max_output_tokens=most)
        assert answer["status"] == "incomplete"
        assert not talk.of("response.function_call_arguments.done")
        assert all(one["status"] == "incomplete" for one in answer["output"])
        assert talk.ask("What is one plus two?", tool_choice="none")["status"] == "completed"
