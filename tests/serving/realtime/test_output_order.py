"""The order of an answer's events, for answers that tiny-omni does not give: what the model says is scripted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from lluda.serving.reading.pieces import (
    AnswerCounts,
    CallArguments,
    CallEnded,
    CallStarted,
    Content,
    Finished,
    Piece,
    Sound,
    Thought,
)
from tests.serving.realtime.talking import talking
from tests.serving.running import RunningServer

CALL: list[Piece] = [CallStarted(0, "call_1", "f"), CallArguments(0, '{"a"'), CallArguments(0, ": 1}"), CallEnded(0)]
END = Finished("stop", AnswerCounts(prompt=3, cached=0, text=5))
SOUND = Sound(np.zeros(2400, np.float32))


def script(monkeypatch: pytest.MonkeyPatch, *pieces: Piece | Exception) -> None:
    @asynccontextmanager
    async def answering(*_: Any) -> AsyncIterator[AsyncIterator[Piece]]:
        async def play() -> AsyncIterator[Piece]:
            for piece in pieces:
                if isinstance(piece, Exception):
                    raise piece
                yield piece

        yield play()

    monkeypatch.setattr("lluda.serving.realtime.answers.responses.answering", answering)


def answer(server: RunningServer, **response: Any) -> tuple[list[str], dict[str, Any]]:
    """Types of the events in order, and the response."""
    with talking(server) as talk:
        start = len(talk.events)
        talk.send("response.create", response=response)
        done = talk.answer()
        return talk.types(start), done


MESSAGE_BEGINS = ["response.output_item.added", "conversation.item.added", "response.content_part.added"]
ITEM_ENDS = ["response.output_item.done", "conversation.item.done"]
CALLS = [
    "response.output_item.added",
    "conversation.item.added",
    "response.function_call_arguments.delta",
    "response.function_call_arguments.done",
    *ITEM_ENDS,
]


def test_words_before_a_call_are_spoken_to_their_end(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, Thought("hm"), Content("One moment."), SOUND, *CALL, SOUND, END)
    kinds, response = answer(server)
    assert kinds == [
        "response.created",
        *MESSAGE_BEGINS,
        "response.output_audio_transcript.delta",
        "response.output_audio.delta",
        "response.output_audio.done",
        "response.output_audio_transcript.done",
        "response.content_part.done",
        *ITEM_ENDS,
        *CALLS,
        "response.done",
    ]
    message, call = response["output"]
    assert message["content"] == [{"type": "output_audio", "transcript": "One moment."}]
    assert (call["call_id"], call["name"], call["arguments"]) == ("call_1", "f", '{"a": 1}')


def test_words_before_a_call_in_writing(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, Content("One moment."), *CALL, END)
    kinds, response = answer(server, output_modalities=["text"])
    assert kinds == [
        "response.created",
        *MESSAGE_BEGINS,
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        *ITEM_ENDS,
        *CALLS,
        "response.done",
    ]
    assert [item["type"] for item in response["output"]] == ["message", "function_call"]
    assert response["usage"]["output_tokens"] == 0, "the script costs nothing"


def test_two_calls_are_two_items(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    second: list[Piece] = [CallStarted(1, "call_2", "g"), CallArguments(1, "{}"), CallEnded(1)]
    script(monkeypatch, *CALL, *second, END)
    kinds, response = answer(server)
    assert kinds == ["response.created", *CALLS, *CALLS, "response.done"]
    assert [item["call_id"] for item in response["output"]] == ["call_1", "call_2"]


def test_an_answer_of_nothing(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, END)
    kinds, response = answer(server)
    assert kinds == ["response.created", "response.done"] and response["output"] == []


def test_an_error_within_an_answer_closes_what_is_open(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, Content("One mo"), SOUND, RuntimeError("a secret"))
    kinds, response = answer(server)
    assert kinds[-4:] == ["response.content_part.done", *ITEM_ENDS, "response.done"]
    assert response["status"] == "failed" and response["status_details"]["error"]["code"] == "internal_error"
    assert response["output"][0]["status"] == "incomplete"
