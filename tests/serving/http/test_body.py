"""Family B of bad requests: content types and JSON."""

from __future__ import annotations

import json

import pytest

from tests.conftest import watchdog
from tests.serving.oracle import check_error, check_well
from tests.serving.running import RunningServer

JSON = {"content-type": "application/json"}


def post(server: RunningServer, content: bytes, headers: dict[str, str] | list[tuple[str, str]] | None = None):
    return server.client.post("/tokenize", content=content, headers=JSON if headers is None else headers)


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({}, id="none"),
        pytest.param({"content-type": "text/plain"}, id="text"),
        pytest.param({"content-type": "application/x-www-form-urlencoded"}, id="form"),
        pytest.param({"content-type": "multipart/form-data"}, id="multipart"),
        pytest.param([("content-type", "application/json"), ("content-type", "text/plain")], id="two"),
        pytest.param({"content-type": "\x01" * 10}, id="control characters"),
    ],
)
def test_other_content_types_are_refused(server: RunningServer, headers) -> None:
    response = post(server, b'{"prompt": "one"}', headers)
    assert response.status_code in (400, 415)
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    check_well(server)


def test_content_type_with_parameters_is_json(server: RunningServer) -> None:
    assert post(server, b'{"prompt": "one"}', {"content-type": "Application/JSON; charset=utf-8"}).status_code == 200


@pytest.mark.parametrize(
    ("content", "where"),
    [
        pytest.param(b"", "line 1", id="empty"),
        pytest.param(b'{"prompt": "one"} x', "line 1", id="trailing"),
        pytest.param(b'{"prompt": "one"', "line 1", id="cut off"),
        pytest.param(b"[" * 100_000, "deep", id="depth of 100,000 that does not close"),
        pytest.param(b"[" * 100_000 + b"]" * 100_000, "deep", id="depth of 100,000"),
        pytest.param(b'{"prompt": ' + b"[" * 64 + b"]" * 64 + b"}", "deep", id="depth of 65"),
        pytest.param(b'{"prompt": NaN}', "NaN", id="NaN"),
        pytest.param(b'{"prompt": -Infinity}', "Infinity", id="infinity"),
        pytest.param(b'{"prompt": 1e400}', "1e400", id="1e400"),
        pytest.param(b'{"prompt": ' + b"9" * 5000 + b"}", "5000 digits", id="integer of 5,000 digits"),
        pytest.param(b'{"prompt": "\\ud800"}', "surrogate", id="half a surrogate pair"),
        pytest.param(b'{"prompt": "a\x00b"}', "line 1", id="NUL"),
        pytest.param(b'\xef\xbb\xbf{"prompt": "one"}', "byte order mark", id="byte order mark"),
        pytest.param('{"prompt": "one"}'.encode("utf-16"), "UTF-8", id="UTF-16"),
        pytest.param(b'{"prompt": "\xff"}', "0xff at 12", id="bad UTF-8"),
        pytest.param(b'{"prompt": "one", "prompt": "two"}', "twice", id="key twice"),
        pytest.param(b"[]", "a list", id="array"),
        pytest.param(b'"one"', "'one'", id="string"),
        pytest.param(b"null", "null", id="null"),
        pytest.param(b"1", "not 1", id="number"),
    ],
)
def test_what_is_no_json_object_is_refused(server: RunningServer, content: bytes, where: str) -> None:
    with watchdog(2):
        error = check_error(post(server, content), 400, "invalid_json")
    assert where in error["message"]
    check_well(server)


@pytest.mark.parametrize(
    ("body", "code", "param", "words"),
    [
        ({"prompt": 3}, "invalid_value", "prompt", "prompt must be a text, not 3"),
        ({"prompt": "a", "add_special_tokens": "yes"}, "invalid_value", "add_special_tokens", "true or false"),
        ({"prompt": "a", "temprature": 1}, "unknown_parameter", "temprature", "temprature is not a field"),
        ({"messages": []}, "invalid_value", "messages", "at least 1"),
        ({"messages": [3]}, "invalid_value", "messages[0]", "messages[0] must be an object, not 3"),
        ({"messages": [{"role": "king", "content": "a"}]}, "invalid_value", None, "king"),
        ({}, "invalid_value", None, "either prompt or messages"),
        ({"prompt": "a", "model": "x" * (1 << 20)}, "model_not_found", "model", "there is no model"),
    ],
)
def test_fields_are_checked(server: RunningServer, body: dict, code: str, param: str | None, words: str) -> None:
    error = check_error(server.post("/tokenize", body), 404 if code == "model_not_found" else 400, code, param)
    assert words in error["message"] and len(error["message"]) < 1000
    check_well(server)


@pytest.mark.parametrize("field", ["user", "metadata", "store", "service_tier", "prompt_cache_key"])
def test_fields_without_meaning_here_are_ignored(server: RunningServer, field: str) -> None:
    assert server.post("/tokenize", {"prompt": "one", field: {"a": ["b"]}}).status_code == 200


def test_example_of_a_number_out_of_range(server: RunningServer) -> None:
    error = check_error(server.post("/detokenize", {"tokens": [1, 10**6]}), 400, "invalid_value", "tokens[1]")
    assert error["message"] == "tokens[1] must be from 0 to 767, not 1000000"


def test_large_body_is_parsed_beside_the_loop(server: RunningServer) -> None:
    """In a worker: the same answer as of a small one."""
    body = {"prompt": "one", "metadata": {"filling": "x" * 200_000}}
    small = server.post("/tokenize", {"prompt": "one"}).json()
    assert post(server, json.dumps(body).encode()).json() == small
