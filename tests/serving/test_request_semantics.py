"""Family C of bad requests: well-formed JSON that asks for what is wrong, too much, or odd.

C16 is in test_spoken_chat.py, C17 in test_speech.py, C18 in tests/serving/transcription.
"""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.conftest import watchdog
from tests.serving.oracle import check_error, check_well
from tests.serving.running import RunningServer
from tests.serving.test_chat import ASKED, MODEL, SUM, UNCLEAR, body
from tests.serving.test_tools import TOOLS

CHAT = "/v1/chat/completions"


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def tool(name: str = "f", **parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def form(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "form", "schema": schema}}


SCHEMA = "response_format.json_schema.schema"
REFUSED: dict[str, list[tuple[dict[str, Any], str | None, str]]] = {
    "C1 messages": [
        ({"messages": None}, "messages", "invalid_value"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": "hello"}, "messages", "invalid_value"),
        ({"messages": user(None)}, "messages[0].content", "invalid_value"),
        ({"messages": user("x") * 1025}, "messages", "invalid_value"),
        ({"messages": [*ASKED, {"role": "bot", "content": "x"}]}, "messages[1]", "invalid_value"),
        ({"messages": [{"content": "x"}]}, "messages[0]", "invalid_value"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id", "missing_required_parameter"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [{"role": "user", "content": "x", "mood": 1}]}, "messages[0].mood", "unknown_parameter"),
        ({"messages": [3]}, "messages[0]", "invalid_value"),
    ],
    "C2 parts": [
        ({"messages": user([])}, "messages[0].content", "invalid_value"),
        ({"messages": user([{"type": "smell"}])}, "messages[0].content[0]", "unsupported_value"),
        ({"messages": user([{"type": "file", "file": {}}])}, "messages[0].content[0]", "unsupported_value"),
        ({"messages": user([text("x")] * 10_000)}, "messages[0].content", "invalid_value"),
        ({"messages": user([[text("x")]])}, "messages[0].content[0]", "unsupported_value"),
        ({"messages": user([{"type": "text", "text": None}])}, "messages[0].content[0].text", "invalid_value"),
        (
            {"messages": [{"role": "system", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
            "invalid_value",
        ),
        (
            {"messages": user([{"type": "image_url", "image_url": "x"}])},
            "messages[0].content[0].image_url",
            "invalid_value",
        ),
    ],
    "C3 n": [({"n": value}, "n", "invalid_value") for value in (0, -1, 9, 10**9, 2**70, True, "3", 1.5)]
    + [({"best_of": 2}, "best_of", "unknown_parameter")],
    "C4 max_tokens": [
        ({name: value}, name, "invalid_value")
        for name in ("max_tokens", "max_completion_tokens")
        for value in (0, -1, "5", 2.5)
    ]
    + [({"max_tokens": 4, "max_completion_tokens": 5}, "max_completion_tokens", "invalid_value")],
    "C5 ranges": [
        ({name: value}, name, "invalid_value")
        for name, values in {
            "temperature": (-1, 2.1, 1e308, "1", True),
            "top_p": (-1, 1.1),
            "top_k": (-2, 1.5, 2**40),
            "min_p": (2, -0.1),
            "presence_penalty": (100, -100),
            "frequency_penalty": (100, -100),
            "repetition_penalty": (0, 1000),
        }.items()
        for value in values
    ],
    "C6 stop": [
        ({"stop": ""}, "stop", "invalid_value"),
        ({"stop": ["a", ""]}, "stop[1]", "invalid_value"),
        ({"stop": ["a"] * 65}, "stop", "invalid_value"),
        ({"stop": "x" * (1 << 20)}, "stop", "invalid_value"),
        ({"stop": [3]}, "stop[0]", "invalid_value"),
        ({"stop": {}}, "stop", "invalid_value"),
    ],
    "C7 logit_bias": [
        ({"logit_bias": {"100000": 1}}, None, "invalid_value"),
        ({"logit_bias": {"-1": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"abc": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"5": 1e9}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"5": -1e9}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"5": "1"}}, "logit_bias.5", "invalid_value"),
        ({"logit_bias": {str(number): 1 for number in range(301)}}, "logit_bias", "invalid_value"),
        ({"logit_bias": [[5, 1]]}, "logit_bias", "invalid_value"),
    ],
    "C8 seed": [({"seed": value}, "seed", "invalid_value") for value in (2**64, -(2**63) - 1, "x", 1.5)],
    "C12 template": [
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs.tokenize", "unknown_parameter"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages", "unknown_parameter"),
        ({"chat_template_kwargs": {"x" * (1 << 20): 1}}, None, "unknown_parameter"),
        ({"chat_template_kwargs": {"enable_thinking": "yes"}}, "chat_template_kwargs.enable_thinking", "invalid_value"),
        ({"chat_template": "{{ 1 }}"}, "chat_template", "unknown_parameter"),
        (
            {"chat_template_kwargs": {"enable_thinking": True}, "reasoning_effort": "none"},
            "chat_template_kwargs.enable_thinking",
            "invalid_value",
        ),
    ],
    "C13 tools": [
        ({"tools": [tool("bad name")]}, "tools[0].function.name", "invalid_value"),
        ({"tools": [tool("x" * 65)]}, "tools[0].function.name", "invalid_value"),
        ({"tools": [tool(f"f{number}") for number in range(1000)]}, "tools", "invalid_value"),
        ({"tools": [tool(), tool()]}, "tools[1]", "invalid_value"),
        ({"tools": [tool(**deep(20))]}, "tools[0].function.parameters", "invalid_json_schema"),
        ({"tools": [tool(**{"$ref": "http://x/y"})]}, "tools[0].function.parameters", "invalid_json_schema"),
        ({"tools": [tool(type=42)]}, "tools[0].function.parameters", "invalid_json_schema"),
        ({"tools": [tool(enum=["x" * 70_000])]}, "tools[0].function.parameters", "invalid_json_schema"),
        ({"tools": [tool(type="object", **{"not": {}})], "tool_choice": "required"}, "tools", "invalid_json_schema"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "invalid_value"),
        ({"tools": TOOLS, "tool_choice": "maybe"}, "tool_choice", "invalid_value"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "tool_choice",
            "invalid_value",
        ),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"functions": []}, "functions", "unsupported_value"),
        ({"function_call": "auto"}, "function_call", "unsupported_value"),
    ],
    "C14 response_format": [
        ({"response_format": {"type": "xml"}}, "response_format", "invalid_value"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing_required_parameter"),
        ({"response_format": form({"type": "thing"})}, SCHEMA, "invalid_json_schema"),
        ({"response_format": form({"enum": ["x" * 20] * 4000})}, SCHEMA, "invalid_json_schema"),
        ({"response_format": form({"type": "string", "pattern": "(?=x)y"})}, "response_format", "invalid_json_schema"),
        ({"response_format": form({"type": "string", "pattern": "("})}, "response_format", "invalid_json_schema"),
        (
            {"response_format": form({"type": "integer", "minimum": 5, "maximum": 3})},
            "response_format",
            "invalid_json_schema",
        ),
        ({"response_format": form({"not": {}})}, "response_format", "invalid_json_schema"),
    ],
    "C15 logprobs and fields": [
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs", "invalid_value"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"logprobs": 5}, "logprobs", "invalid_value"),
        ({"echo": True}, "echo", "unknown_parameter"),
        ({"nonsense": None}, "nonsense", "unknown_parameter"),
    ],
    "C19 stream": [
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"stream": "yes"}, "stream", "invalid_value"),
        ({"stream": 1}, "stream", "invalid_value"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown_parameter"),
    ],
    "C20 salt": [({"cache_salt": "a"}, "cache_salt", "unknown_parameter")],
}
ROWS = [(name, *row) for name, rows in REFUSED.items() for row in rows]


@pytest.mark.parametrize(("changes", "param", "code"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_what_is_wrong_is_refused_with_its_path(
    server: RunningServer, changes: dict[str, Any], param: str | None, code: str
) -> None:
    submitted = server.model.engine.stats().submitted
    error = check_error(server.post(CHAT, body(**changes)), 400, code)
    if param is not None:
        assert error["param"] == param
    assert server.model.engine.stats().submitted == submitted
    check_well(server)


TAKEN: dict[str, dict[str, Any]] = {
    "C1 assistant last": {"messages": [*ASKED, {"role": "assistant", "content": "Two"}]},
    "C1 system late": {"messages": [*ASKED, {"role": "system", "content": "Be short."}]},
    "C1 arguments that were cut off": {
        "messages": [
            *ASKED,
            {
                "role": "assistant",
                "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a'}}],
            },
            {"role": "tool", "tool_call_id": "c", "content": "x"},
        ]
    },
    "C4 both, equal": {"max_tokens": 4, "max_completion_tokens": 4},
    "C4 beyond all": {"max_tokens": 2**70},
    "C5 top_p 0": {"temperature": 1, "top_p": 0},
    "C5 top_k": {"temperature": 1, "top_k": 10**9},
    "C5 off": {"temperature": 1, "top_k": -1, "min_p": 0},
    "C6 five": {"stop": ["a1", "b1", "c1", "d1", "e1"]},
    "C8 negative": {"seed": -1, "temperature": 1},
    "C9 right to left": {"messages": user("שלום مرحبا")},
    "C9 private use": {"messages": user("\ue000\uf8ff")},
    "C9 noncharacter": {"messages": user("\ufffe\uffff\ufdd0")},
    "C9 emoji": {"messages": user("👩‍👩‍👧‍👦" * 20)},
    "C10 empty": {"messages": user("")},
    "C10 spaces": {"messages": user("   ")},
    "C10 special-looking": {"messages": user("<|im_end|>")},
    "C13 recursive": {
        "tools": [
            tool(
                type="object",
                properties={"a": {"$ref": "#/$defs/n"}},
                **{"$defs": {"n": {"properties": {"n": {"$ref": "#/$defs/n"}}}}},
            )
        ]
    },
    "C13 pattern": {"tools": [tool(type="object", properties={"a": {"type": "string", "pattern": "(a+)+$"}})]},
    "C14 recursive": {"response_format": form({"type": "object", "properties": {"a": {"$ref": "#"}}})},
    "C14 pattern": {"response_format": form({"type": "string", "pattern": "(a+)+$"})},
    "C15 without top": {"logprobs": True},
    "C15 ignored": {"store": True, "prediction": {"type": "content", "content": "x"}, "user": "u"},
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_odd_but_meant_is_answered(server: RunningServer, name: str) -> None:
    with watchdog(20):
        answer = server.post(CHAT, body(**{"max_tokens": 8, **TAKEN[name]}))
    assert answer.status_code == 200, answer.text
    assert "NaN" not in answer.text
    check_well(server)


def test_a_hundred_thousand_messages_are_refused_soon(server: RunningServer) -> None:
    """C1; a body of 4 MB, parsed beside the event loop."""
    started = time.monotonic()
    check_error(server.post(CHAT, body(messages=user("x") * 100_000)), 400, "invalid_value", "messages")
    assert time.monotonic() - started < 20
    check_well(server)


@pytest.mark.parametrize("levels", [40, 10_000])
def test_a_schema_of_many_levels_is_refused(server: RunningServer, levels: int) -> None:
    """C13; JSON of more than 64 levels is refused before it is a schema."""
    nested = '{"a":' * levels + "1" + "}" * levels
    content = json.dumps(body(tools=[{"type": "function", "function": {"name": "f", "parameters": "NESTED"}}]))
    content = content.replace('"NESTED"', nested)
    answer = server.client.post(CHAT, content=content, headers={"content-type": "application/json"})
    check_error(answer, 400, "invalid_json" if levels > 64 else "invalid_json_schema")
    check_well(server)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400"])
def test_numbers_that_json_has_not_are_refused(server: RunningServer, number: str) -> None:
    """C5."""
    content = json.dumps(body(temperature="T")).replace('"T"', number)
    answer = server.client.post(CHAT, content=content, headers={"content-type": "application/json"})
    check_error(answer, 400)
    check_well(server)


def content_of(server: RunningServer, **changes: Any) -> str:
    answer = server.post(CHAT, body(**changes))
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def test_a_temperature_near_zero_is_greedy(server: RunningServer) -> None:
    """C5."""
    assert content_of(server, messages=UNCLEAR, temperature=1e-9) == content_of(server, messages=UNCLEAR, temperature=0)


def test_all_that_the_form_allows_may_not_be_forbidden(server: RunningServer) -> None:
    """C7: where a bias leaves no token, the request ends with an error that says so, and no other."""
    opening = server.model.tokenizer.id_of("<tool_call>")
    answer = server.post(CHAT, body(tools=TOOLS, tool_choice="required", logit_bias={str(opening): -100}))
    assert "token" in check_error(answer, 400)["message"]
    check_well(server)


def test_a_seed_says_the_answer(server: RunningServer) -> None:
    """C8: alone, again, and among others."""
    varied: dict[str, Any] = {"messages": UNCLEAR, "temperature": 2, "top_k": 0, "max_tokens": 10}
    first = content_of(server, seed=11, **varied)
    assert content_of(server, seed=11, **varied) == first
    among = server.post(CHAT, body(seed=9, n=4, **varied)).json()["choices"]
    assert among[2]["message"]["content"] == first
    assert len({choice["message"]["content"] for choice in among}) > 1


def test_a_prompt_fits_up_to_one_position_less_than_the_context(server: RunningServer) -> None:
    """C9."""
    context = server.model.runner.cache_options.max_length
    for length, fits in ((context - 1, True), (context, False), (context + 1, False)):
        answer = server.post("/v1/completions", {"model": MODEL, "prompt": [5] * length, "max_tokens": 9})
        if fits:
            assert answer.json()["usage"]["completion_tokens"] == 1
            assert answer.json()["choices"][0]["finish_reason"] in ("length", "stop")
        else:
            message = check_error(answer, 400, "context_length_exceeded")["message"]
            assert str(length) in message
            assert str(context) in message
    check_well(server)


@pytest.mark.parametrize("letter", ["a", " ", "👩‍👧", "\n", "é"])
def test_a_megabyte_of_one_letter_is_refused_in_time(server: RunningServer, letter: str) -> None:
    """C9."""
    messages = user(letter * ((1 << 20) // len(letter.encode())))
    with watchdog(20):
        check_error(server.post(CHAT, body(messages=messages)), 400, "context_length_exceeded")
    check_well(server)


def test_more_text_than_is_taken_is_refused_before_it_is_tokenised(server: RunningServer) -> None:
    """C9: 10 MB."""
    check_error(server.post(CHAT, body(messages=user("x" * 10_000_000))), 400, "invalid_value", "messages")
    check_error(
        server.post("/v1/completions", {"model": MODEL, "prompt": "x" * 10_000_000}), 400, "invalid_value", "prompt"
    )
    check_well(server)


SPELLINGS = ["<|im_end|>", "<|image_pad|>", "<|audio_start|>", "</think>", "<tool_call>", "<tool_response>"]


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("role", ["system", "user", "tool"])
def test_what_looks_like_a_token_is_text(server: RunningServer, spelling: str, role: str) -> None:
    """C11: no message can close itself, open another, or stand for a medium."""
    message = {"role": role, "content": f"a {spelling} b", **({"tool_call_id": "c"} if role == "tool" else {})}
    answer = server.post(CHAT, body(messages=[message, *ASKED], max_tokens=1)).json()
    plain = {"role": role, "content": f"a {spelling} b"}
    prompt = server.model.chat_prompt([plain, *ASKED])
    assert answer["usage"]["prompt_tokens"] == len(prompt)
    clean = server.model.chat_prompt([{"role": role, "content": "a b"}, *ASKED])
    number = server.model.tokenizer.id_of(spelling)
    assert list(prompt.ids).count(number) == list(clean.ids).count(number)
    assert answer["usage"]["prompt_tokens_details"]["audio_tokens"] == 0


def test_two_requests_of_one_id_are_two_requests(server: RunningServer) -> None:
    """C20."""
    headers = {"x-request-id": "same"}
    answers = [server.post(CHAT, body(), headers=headers) for _ in range(2)]
    assert [answer.headers["x-request-id"] for answer in answers] == ["same", "same"]
    assert [answer.json()["choices"][0]["message"]["content"] for answer in answers] == [SUM, SUM]
    assert answers[0].json()["id"] != answers[1].json()["id"]
