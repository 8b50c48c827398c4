"""The items of a conversation: messages, calls of functions and what these gave."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Role = Literal["system", "user", "assistant"]
Status = Literal["in_progress", "completed", "incomplete"]
PartKind = Literal["input_text", "input_audio", "input_image", "output_text", "output_audio"]


def new_id(prefix: str) -> str:
    """An id that there is not yet: ``item_…``, ``resp_…``."""
    return f"{prefix}_{secrets.token_hex(10)}"


@dataclass(slots=True, eq=False)
class Part:
    """``text``: what is written, or the transcript of what is said (None: not known). ``source``: sound or picture as a
    part of the model's messages takes it. ``samples``: of a user's sound at 16 kHz, as integers, while they are kept.
    ``seconds``: of a user's sound, or of an answer's as far as it was sent."""

    kind: PartKind
    text: str | None = None
    source: Any = field(default=None, repr=False)
    samples: NDArray[np.int16] | None = field(default=None, repr=False)
    seconds: float = 0.0

    def describe(self) -> dict[str, Any]:
        """As OpenAI writes it, without sound."""
        match self.kind:
            case "input_text" | "output_text":
                return {"type": self.kind, "text": self.text or ""}
            case "input_image":
                return {"type": self.kind}
            case "input_audio":
                return {"type": self.kind, "transcript": self.text}
            case "output_audio":
                return {"type": self.kind, "transcript": self.text or ""}

    def describe_event(self) -> dict[str, Any]:
        """As the events of an answer's parts write it."""
        if self.kind == "output_audio":
            return {"type": "audio", "transcript": self.text or ""}
        return {"type": "text", "text": self.text or ""}


@dataclass(slots=True, eq=False)
class MessageItem:
    """Somebody says something."""

    role: Role
    parts: list[Part] = field(default_factory=list)
    id: str = field(default_factory=lambda: new_id("item"))
    status: Status = "completed"

    def describe(self) -> dict[str, Any]:
        """As OpenAI writes it, without sound."""
        content = [part.describe() for part in self.parts]
        return {**_head(self.id, "message", self.status), "role": self.role, "content": content}


@dataclass(slots=True, eq=False)
class CallItem:
    """The assistant calls a function."""

    name: str
    arguments: str = ""
    call_id: str = field(default_factory=lambda: new_id("call"))
    id: str = field(default_factory=lambda: new_id("item"))
    status: Status = "completed"

    def describe(self) -> dict[str, Any]:
        """As OpenAI writes it."""
        own = {"call_id": self.call_id, "name": self.name, "arguments": self.arguments}
        return {**_head(self.id, "function_call", self.status), **own}

    def as_call(self) -> dict[str, Any]:
        """As chat templates take it: arguments that are no object, because they were cut off, as they were written."""
        try:
            parsed = json.loads(self.arguments or "{}")
        except (ValueError, RecursionError):
            parsed = None
        arguments = parsed if isinstance(parsed, dict) else self.arguments
        return {"id": self.call_id, "type": "function", "function": {"name": self.name, "arguments": arguments}}


@dataclass(slots=True, eq=False)
class CallOutputItem:
    """What a function gave."""

    call_id: str
    output: str
    id: str = field(default_factory=lambda: new_id("item"))
    status: Status = "completed"

    def describe(self) -> dict[str, Any]:
        """As OpenAI writes it."""
        return {
            **_head(self.id, "function_call_output", self.status),
            "call_id": self.call_id,
            "output": self.output,
        }


Item = MessageItem | CallItem | CallOutputItem


def _head(number: str, kind: str, status: Status) -> dict[str, Any]:
    return {"id": number, "object": "realtime.item", "type": kind, "status": status}
