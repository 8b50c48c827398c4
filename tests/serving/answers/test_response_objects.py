"""Answers as responses: valid for OpenAI's types, in the order that its clients expect."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from lluda.serving.answers.head import AnswerHead
from lluda.serving.answers.response_answer import ResponseAnswer
from lluda.serving.http.errors import ApiError
from tests.serving import openai_types
from tests.serving.answers.test_chat_objects import ANSWERS
from tests.serving.reading.scripted import VOCABULARY, read, script
from tests.serving.reading.test_answer_reader import CALL

ECHO = {"parallel_tool_calls": True, "tool_choice": "auto", "tools": []}
TEXT = ("response.output_item.added", "response.content_part.added", "response.output_text.delta",
        "response.output_text.done", "response.content_part.done", "response.output_item.done")  # fmt: skip
NAMES = [name for name in ANSWERS if name != "spoken"]


def told(name: str) -> tuple[ResponseAnswer, list[dict[str, Any]]]:
    events, form = ANSWERS[name]
    answer = ResponseAnswer(AnswerHead("resp_", "m", ""), ECHO, VOCABULARY, 2 if form.get("logprobs") else None)
    made = [*answer.begin(), *(event for piece in read(events, **form) for event in answer.of(piece))]
    return answer, [json.loads(msgspec.json.encode(event)) for event in made]


@pytest.mark.parametrize("name", NAMES)
def test_events_and_response_are_of_openais_types(name: str) -> None:
    answer, events = told(name)
    for event in events:
        openai_types.response_event(event)
    openai_types.response(json.loads(msgspec.json.encode(answer.as_object())))


@pytest.mark.parametrize("name", NAMES)
def test_events_are_numbered_and_end_with_the_whole_response(name: str) -> None:
    answer, events = told(name)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1]["response"] == json.loads(msgspec.json.encode(answer.as_object()))
    assert events[-1]["type"] == ("response.incomplete" if name == "length" else "response.completed")


@pytest.mark.parametrize("name", NAMES)
def test_each_item_is_added_once_and_done_once(name: str) -> None:
    answer, events = told(name)
    added = [event["item"]["id"] for event in events if event["type"] == "response.output_item.added"]
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert added == [item["id"] for item in done]
    assert done == json.loads(msgspec.json.encode([item.as_object() for item in answer.items]))


def test_the_order_of_a_text() -> None:
    _, events = told("text")
    kinds = [event["type"] for event in events[2:-1]]
    assert list(dict.fromkeys(kinds)) == list(TEXT)
    text = next(event for event in events if event["type"] == "response.output_text.done")["text"]
    assert text == "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")


def test_the_order_of_a_thought_a_text_and_a_call() -> None:
    events = script(["<think>", "hm", "</think>", "Yes.", *CALL])
    answer = ResponseAnswer(AnswerHead("resp_", "m", ""), ECHO, VOCABULARY)
    made = [event for piece in read(events, functions={"f"}) for event in answer.of(piece)]
    assert list(dict.fromkeys((event.get("output_index"), event["type"]) for event in made)) == [
        (0, "response.output_item.added"),
        (0, "response.reasoning_text.delta"),
        (0, "response.reasoning_text.done"),
        (0, "response.output_item.done"),
        *((1, kind) for kind in TEXT),
        (2, "response.output_item.added"),
        (2, "response.function_call_arguments.delta"),
        (2, "response.function_call_arguments.done"),
        (2, "response.output_item.done"),
        (None, "response.completed"),
    ]
    assert [item["type"] for item in answer.as_object()["output"]] == ["reasoning", "message", "function_call"]
    assert answer.as_object()["output"][2]["arguments"] == '{"a": 1}'


def test_an_answer_without_text_has_an_empty_message() -> None:
    answer, _ = told("empty")
    assert [item["content"][0]["text"] for item in answer.as_object()["output"]] == [""]


def test_a_call_that_does_not_parse_is_no_call_to_make() -> None:
    answer, _ = told("broken: broken arguments")
    call, message = answer.as_object()["output"]
    assert (call["type"], call["status"]) == ("function_call", "incomplete")
    assert message["content"][0]["text"].startswith("<tool_call>")


def test_an_error_ends_the_stream_with_what_there_was() -> None:
    events, form = ANSWERS["text"]
    answer = ResponseAnswer(AnswerHead("resp_", "m", ""), ECHO, VOCABULARY)
    list(answer.begin())
    for piece in read(events, **form)[:2]:
        list(answer.of(piece))
    last = json.loads(msgspec.json.encode(answer.failed(ApiError(503, "draining", "the server was stopped"))))
    openai_types.response_event(last)
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert last["response"]["output"][0]["content"][0]["text"] == "Oslo"
