"""Items of a response's output while they are made, and the events that tell of it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lluda.serving.answers.logprobs import without_bytes

Event = dict[str, Any]
"""One of a response's stream, without its number."""


@dataclass(slots=True, eq=False)
class MessageItem:
    """Text for the reader, item number ``index``."""

    index: int
    id: str = field(default_factory=lambda: f"msg_{secrets.token_hex(12)}")
    text: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    status: str = "in_progress"

    def begin(self) -> Iterator[Event]:
        """It is there, and empty."""
        yield {"type": "response.output_item.added", "output_index": self.index, "item": self._item([])}
        yield self._event("response.content_part.added", part=self._part("", []))

    def add(self, text: str, logprobs: list[dict[str, Any]]) -> Iterator[Event]:
        """More text, and the log-probabilities of tokens."""
        self.text.append(text)
        self.logprobs += logprobs
        shown = [without_bytes(entry) for entry in logprobs]
        yield self._event("response.output_text.delta", delta=text, logprobs=shown)

    def end(self, status: str = "completed") -> Iterator[Event]:
        """Nothing follows."""
        self.status, text = status, "".join(self.text)
        shown = [without_bytes(entry) for entry in self.logprobs]
        yield self._event("response.output_text.done", text=text, logprobs=shown)
        yield self._event("response.content_part.done", part=self._part(text, self.logprobs))
        yield {"type": "response.output_item.done", "output_index": self.index, "item": self.as_object()}

    def as_object(self) -> dict[str, Any]:
        """As it stands in the output."""
        return self._item([self._part("".join(self.text), self.logprobs)])

    def _item(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "type": "message", "role": "assistant", "status": self.status, "content": content}

    def _part(self, text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    def _event(self, kind: str, **fields: Any) -> Event:
        place = {"item_id": self.id, "output_index": self.index, "content_index": 0}
        return {"type": kind, **place, **fields}


@dataclass(slots=True, eq=False)
class ReasoningItem:
    """What was thought."""

    index: int
    id: str = field(default_factory=lambda: f"rs_{secrets.token_hex(12)}")
    text: list[str] = field(default_factory=list)
    status: str = "in_progress"

    def begin(self) -> Iterator[Event]:
        """It is there, and empty."""
        yield {"type": "response.output_item.added", "output_index": self.index, "item": self._item([])}

    def add(self, text: str) -> Iterator[Event]:
        """More of it."""
        self.text.append(text)
        yield self._event("response.reasoning_text.delta", delta=text)

    def end(self, status: str = "completed") -> Iterator[Event]:
        """Nothing follows."""
        self.status = status
        yield self._event("response.reasoning_text.done", text="".join(self.text))
        yield {"type": "response.output_item.done", "output_index": self.index, "item": self.as_object()}

    def as_object(self) -> dict[str, Any]:
        """As it stands in the output."""
        return self._item([{"type": "reasoning_text", "text": "".join(self.text)}])

    def _item(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "type": "reasoning", "status": self.status, "summary": [], "content": content}

    def _event(self, kind: str, **fields: Any) -> Event:
        return {"type": kind, "item_id": self.id, "output_index": self.index, "content_index": 0, **fields}


@dataclass(slots=True, eq=False)
class CallItem:
    """A call of the function ``name``."""

    index: int
    call_id: str
    name: str
    id: str = field(default_factory=lambda: f"fc_{secrets.token_hex(12)}")
    arguments: list[str] = field(default_factory=list)
    status: str = "in_progress"

    def begin(self) -> Iterator[Event]:
        """It is there, without arguments."""
        yield {"type": "response.output_item.added", "output_index": self.index, "item": self.as_object()}

    def add(self, text: str) -> Iterator[Event]:
        """More of its arguments."""
        self.arguments.append(text)
        yield self._event("response.function_call_arguments.delta", delta=text)

    def end(self, status: str = "completed") -> Iterator[Event]:
        """Nothing follows."""
        self.status = status
        arguments = "".join(self.arguments)
        yield self._event("response.function_call_arguments.done", arguments=arguments, name=self.name)
        yield {"type": "response.output_item.done", "output_index": self.index, "item": self.as_object()}

    def as_object(self) -> dict[str, Any]:
        """As it stands in the output."""
        return {
            "id": self.id,
            "type": "function_call",
            "call_id": self.call_id,
            "name": self.name,
            "arguments": "".join(self.arguments),
            "status": self.status,
        }

    def _event(self, kind: str, **fields: Any) -> Event:
        return {"type": kind, "item_id": self.id, "output_index": self.index, **fields}


OutputItem = MessageItem | ReasoningItem | CallItem
