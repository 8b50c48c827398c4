"""OpenAI's own types as judges of the events that the server sends."""

from __future__ import annotations

import json
from typing import Any, get_args

from openai.types.realtime import RealtimeServerEvent

from tests.serving.openai_types import known

_TYPES = {get_args(one.model_fields["type"].annotation)[0]: one for one in get_args(get_args(RealtimeServerEvent)[0])}

RATES = (8000, 16000)
"""Of samples of 16 bits, that this server takes beside OpenAI's one."""


def check_event(event: dict[str, Any]) -> Any:
    """``event`` as OpenAI's type has it, strictly: no type is converted, no field unknown, but for the one that tells
    of a machine that speaks too slowly."""
    session = {name: value for name, value in event.get("session", {}).items() if name != "speech_real_time_factor"}
    theirs = _at_openais_rate({**event, "session": session} if session else event)
    return known(_TYPES[event["type"]].model_validate_json(json.dumps(theirs), strict=True))


def _at_openais_rate(value: Any) -> Any:
    if isinstance(value, list):
        return [_at_openais_rate(one) for one in value]
    if not isinstance(value, dict):
        return value
    if value.get("type") == "audio/pcm" and value.get("rate") in RATES:
        return {**value, "rate": 24000}
    return {name: _at_openais_rate(one) for name, one in value.items()}
