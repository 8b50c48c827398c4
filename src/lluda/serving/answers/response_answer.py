"""An answer as a ``response`` of /v1/responses, whole or as the events of its stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lluda.engine.request import Token
from lluda.serving.answers.head import AnswerHead
from lluda.serving.answers.logprobs import chat_logprob
from lluda.serving.answers.response_items import CallItem, Event, MessageItem, OutputItem, ReasoningItem
from lluda.serving.answers.usage import response_usage
from lluda.serving.http.errors import ApiError
from lluda.serving.reading.marks import Vocabulary
from lluda.serving.reading.pieces import (
    CallArguments,
    CallBroken,
    CallEnded,
    CallStarted,
    Content,
    Finished,
    Piece,
    Thought,
)


@dataclass(slots=True, eq=False)
class ResponseAnswer:
    """`of` takes the pieces of the answer in order and tells the events; `as_object` is the response so far.
    ``echo``: fields of the request that a response repeats; ``logprobs``: alternatives of each token (None: nothing
    is reported)."""

    head: AnswerHead
    echo: Mapping[str, Any]
    vocabulary: Vocabulary
    logprobs: int | None = None
    items: list[OutputItem] = field(default_factory=list)
    finished: Finished | None = None
    _open: OutputItem | None = None
    _waiting: list[Token] = field(default_factory=list)  # tokens of text that has not come yet
    _error: dict[str, Any] | None = None
    _number: int = 0

    def begin(self) -> Iterator[Event]:
        """The events before all others."""
        for kind in ("response.created", "response.in_progress"):
            yield self._numbered({"type": kind, "response": self.as_object()})

    def of(self, piece: Piece) -> Iterator[Event]:
        """The events that tell ``piece``; there may be none."""
        for event in self._told(piece):
            yield self._numbered(event)

    def failed(self, error: ApiError) -> Event:
        """The last event of a stream that ends with an error."""
        self._error = {"code": "server_error", "message": error.message}
        return self._numbered({"type": "response.failed", "response": self.as_object()})

    def as_object(self) -> dict[str, Any]:
        """The response so far."""
        cut = self.finished is not None and self.finished.reason == "length"
        status = "in_progress" if self.finished is None else "incomplete" if cut else "completed"
        return {
            "id": self.head.id,
            "object": "response",
            "created_at": self.head.created,
            "status": "failed" if self._error else status,
            "error": self._error,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "model": self.head.model,
            "output": [item.as_object() for item in self.items],
            "usage": None if self.finished is None else response_usage(self.finished.counts),
            **self.echo,
        }

    def _told(self, piece: Piece) -> Iterator[Event]:
        match piece:
            case Content():
                yield from self._content(piece)
            case Thought(text):
                if not isinstance(self._open, ReasoningItem):
                    yield from self._begin(ReasoningItem(len(self.items)))
                assert isinstance(self._open, ReasoningItem), "it was opened"
                yield from self._open.add(text)
            case CallStarted(_, number, name):
                yield from self._begin(CallItem(len(self.items), number, name))
            case CallArguments(_, text):
                assert isinstance(self._open, CallItem), "arguments follow the beginning of their call"
                yield from self._open.add(text)
            case CallEnded():
                yield from self._close()
            case CallBroken(index) if index is not None:
                yield from self._close("incomplete")
            case Finished():
                yield from self._finish(piece)

    def _content(self, piece: Content) -> Iterator[Event]:
        self._waiting += piece.tokens
        if not piece.text:
            return
        message = self._open
        if not isinstance(message, MessageItem):
            message = MessageItem(len(self.items))
            yield from self._begin(message)
        yield from message.add(piece.text, self._taken_logprobs())

    def _taken_logprobs(self) -> list[dict[str, Any]]:
        tokens, self._waiting = self._waiting, []
        if self.logprobs is None:
            return []
        return [chat_logprob(token, self.vocabulary, self.logprobs) for token in tokens]

    def _begin(self, item: OutputItem) -> Iterator[Event]:
        yield from self._close()
        self.items.append(item)
        self._open = item
        yield from item.begin()

    def _close(self, status: str = "completed") -> Iterator[Event]:
        item, self._open = self._open, None
        if item is not None:
            yield from item.end(status)

    def _finish(self, piece: Finished) -> Iterator[Event]:
        if not self.items:
            yield from self._begin(MessageItem(0))  # an answer has at least one item, and be it empty
        cut = piece.reason == "length"
        yield from self._close("incomplete" if cut else "completed")
        self.finished = piece
        yield {"type": "response.incomplete" if cut else "response.completed", "response": self.as_object()}

    def _numbered(self, event: Event) -> Event:
        number, self._number = self._number, self._number + 1
        return {"type": event["type"], "sequence_number": number, **event}
