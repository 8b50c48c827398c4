"""Events that nobody thought of: what is well written with something in it replaced, left out, added or taken apart."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lluda.serving.http.errors import ApiError
from lluda.serving.realtime.events.beta_names import is_beta, to_ga
from lluda.serving.realtime.events.client_events import read_event, read_json
from tests.serving.realtime.talking import talking, user_text
from tests.serving.running import RunningServer

TOOL = {"type": "function", "name": "clock", "description": "the time", "parameters": {"type": "object"}}
SESSION = {
    "type": "realtime",
    "output_modalities": ["text"],
    "instructions": "Be brief.",
    "tools": [TOOL],
    "tool_choice": {"type": "function", "name": "clock"},
    "max_output_tokens": 8,
    "truncation": {"type": "retention_ratio", "retention_ratio": 0.5},
    "audio": {
        "input": {
            "format": {"type": "audio/pcm", "rate": 24000},
            "transcription": {"model": "tiny-omni", "language": "en", "prompt": "names"},
            "turn_detection": {"type": "server_vad", "threshold": 0.5, "idle_timeout_ms": 5000},
        },
        "output": {"format": {"type": "audio/pcmu"}, "voice": {"id": "lark"}, "speed": 1.0},
    },
}
BETA = {
    "modalities": ["text"],
    "voice": "alloy",
    "input_audio_format": "g711_ulaw",
    "turn_detection": {"type": "semantic_vad", "eagerness": "low"},
    "tools": [{"type": "function", "function": {"name": "clock", "parameters": {}}}],
    "tool_choice": {"type": "function", "function": {"name": "clock"}},
    "max_response_output_tokens": 8,
}
SAID = {"type": "message", "role": "user", "content": [{"type": "input_audio", "audio": "AAAA" * 2000}]}
SEEN = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
ANSWERED = {"type": "message", "role": "assistant", "content": [{"type": "output_audio", "transcript": "three"}]}
CALLED = {"type": "function_call", "name": "clock", "arguments": "{}", "call_id": "call_1"}
RETURNED = {"type": "function_call_output", "call_id": "call_1", "output": "noon"}
WISH = {"output_modalities": ["text"], "max_output_tokens": 4, "metadata": {"a": "b"}, "conversation": "none"}

WELL: tuple[dict[str, Any], ...] = (
    {"type": "session.update", "session": SESSION},
    {"type": "session.update", "session": BETA},
    {"type": "transcription_session.update", "session": {"input_audio_format": "pcm16"}},
    {"type": "input_audio_buffer.append", "audio": "AAAA" * 2000},
    {"type": "input_audio_buffer.commit"},
    {"type": "input_audio_buffer.clear"},
    *(
        {"type": "conversation.item.create", "previous_item_id": "root", "item": item}
        for item in (user_text("What is one plus two?"), SAID, ANSWERED, CALLED, RETURNED)
    ),
    {"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": [SEEN]}},
    {"type": "conversation.item.retrieve", "item_id": "item_1"},
    {"type": "conversation.item.delete", "item_id": "item_1"},
    {"type": "conversation.item.truncate", "item_id": "item_1", "content_index": 0, "audio_end_ms": 100},
    {"type": "response.create", "response": WISH},
    {"type": "response.create", "response": WISH | {"input": [user_text("Two?"), SAID, CALLED, RETURNED]}},
    {"type": "response.create", "response": WISH | {"input": [{"type": "item_reference", "id": "item_1"}]}},
    {"type": "response.cancel", "response_id": "resp_1"},
    {"type": "output_audio_buffer.clear"},
)

_TEXTS = st.text(max_size=12) | st.sampled_from(
    ["", "root", "\x00", "\ud800", "inf", "audio/pcmu", "message", "9" * 400, "data:,", SEEN["image_url"], "=" * 5]
)
_LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 10**30, 1e308, -0.0, 1e-320])
    | _TEXTS
)  # fmt: skip
ODD = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3),
    max_leaves=5,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something lies in an event."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, one in inner for found in [(*path, key), *places(one, (*path, key))]]


@st.composite
def odd_events(draw: st.DrawFn) -> dict[str, Any]:
    """One that is well written, with up to three changes."""
    event = copy.deepcopy(draw(st.sampled_from(WELL)))
    for _ in range(draw(st.integers(0, 3))):
        _change(event, draw)
    return event


def _change(event: dict[str, Any], draw: st.DrawFn) -> None:
    where = places(event)
    if not where:
        return
    *path, last = draw(st.sampled_from(where))
    holder: Any = event
    for key in path:
        holder = holder[key]
    match draw(st.sampled_from(["replace", "remove", "add", "nest"])):
        case "replace":
            holder[last] = draw(ODD)
        case "remove":
            del holder[last]
        case "add" if isinstance(holder, dict):
            holder[draw(_TEXTS)] = draw(ODD)
        case _:
            holder[last] = [holder[last]]


@settings(max_examples=400, deadline=None, derandomize=True)
@given(odd_events())
def test_an_event_is_read_or_refused_as_a_fault_of_the_client(event: dict[str, Any]) -> None:
    try:
        value = read_json(json.dumps(event))
        is_beta(value)
        read_event(to_ga(value))
    except ApiError as error:
        assert 400 <= error.status < 500
        assert error.code
        assert error.message


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(odd_events(), min_size=4, max_size=16))
def test_a_session_outlives_what_it_is_sent(server: RunningServer, events: list[dict[str, Any]]) -> None:
    """Each error is the client's, by its code, and the session answers what comes behind."""
    with talking(server) as talk:
        talk.beta = True  # events may ask for the older names, which are not OpenAI's types of today
        for event in events:
            talk.connection.send(json.dumps(event))
        talk.send("conversation.item.retrieve", item_id="nobody", event_id="the last")
        while (event := talk.receive()).get("error", {}).get("event_id") != "the last":
            pass
        for error in talk.of("error"):
            assert error["error"]["type"] != "server_error", error
            assert error["error"]["code"] != "internal_error", error
        assert event["error"]["code"] == "item_retrieve_invalid_item_id"
