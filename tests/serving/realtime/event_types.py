"""OpenAI's own types as judges of the events that the server sends."""

from __future__ import annotations

import json
from typing import Any

from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter

from tests.serving.openai_types import known

_event = TypeAdapter[Any](RealtimeServerEvent)


def check_event(event: Any) -> Any:
    """``event`` as OpenAI's type has it, strictly: no type is converted, no field unknown."""
    return known(_event.validate_json(json.dumps(event), strict=True))
