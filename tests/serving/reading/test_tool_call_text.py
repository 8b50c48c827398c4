"""A tool call read while it comes."""

from __future__ import annotations

import json

import pytest

from lluda.serving.reading.tool_call_text import ToolCallText

CALLS = [
    ('{"name": "f", "arguments": {"city": "Oslo"}}', "f", '{"city": "Oslo"}'),
    ('\n{"name":"f","arguments":{}}\n', "f", "{}"),
    ('{"arguments": {"a": [1, {"b": "}]"}]}, "name": "f"}', "f", '{"a": [1, {"b": "}]"}]}'),
    ('{"id": 3, "name": "f", "extra": [true, null], "arguments": {"q": "say \\"}\\""}}', "f", '{"q": "say \\"}\\""}'),
    ('{"name": "\\u0066"}', "f", "{}"),
    ('{"arguments": {"a": 1}, "n": -1.5e3, "name": "f"}', "f", '{"a": 1}'),
    ('{"name": "f", "arguments": {"name": "inner"}, "x": true}', "f", '{"name": "inner"}'),
]
NO_CALLS = [
    "",
    "{}",
    "[]",
    "hello",
    '{"name": 3, "arguments": {}}',
    '{"name": "f", "arguments": "text"}',
    '{"name": "f", "arguments": {}',
    '{"name": "f", "arguments": {}} more',
    '{"name": "f" "arguments": {}}',
    '{"name": "f", "arguments": {"a": }}',
    '{"name": "f", "name": "g", "arguments": {}}',
    '{"name": "f", "arguments": {}, "arguments": {}}',
    '{"name": "f", "arguments": {"a": 1]}}',
    '{"arguments": {}}',
    '{"name": "f", "arguments": {},}',
    '{,"name": "f"}',
    "[" * 2000,
]


@pytest.mark.parametrize("step", [1, 3, 1000])
@pytest.mark.parametrize(("text", "name", "arguments"), CALLS)
def test_a_call_is_read_however_it_is_cut(text: str, name: str, arguments: str, step: int) -> None:
    call, shown = ToolCallText(), ""
    for start in range(0, len(text), step):
        call.push(text[start : start + step])
        if call.name is not None:
            assert call.arguments.startswith(shown)
            shown = call.arguments
    assert (call.name, call.finish()) == (name, arguments)
    assert json.loads(arguments) == json.loads(text).get("arguments", {})
    assert not call.failed


@pytest.mark.parametrize("step", [1, 1000])
@pytest.mark.parametrize("text", NO_CALLS)
def test_what_is_no_call_is_none(text: str, step: int) -> None:
    call = ToolCallText()
    for start in range(0, len(text), step):
        call.push(text[start : start + step])
    assert call.finish() is None
    assert call.raw == text


def test_the_name_is_known_before_the_arguments_end() -> None:
    call = ToolCallText()
    call.push('{"name": "f", "arguments": {"city": "Os')
    assert (call.name, call.arguments) == ("f", '{"city": "Os')
