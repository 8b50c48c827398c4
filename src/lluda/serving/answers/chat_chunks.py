"""An answer as the chunks of a stream."""

from __future__ import annotations

import base64
from typing import Any

from lluda.outputs.wav_header import pcm16
from lluda.serving.answers.chat_answer import ChatView
from lluda.serving.answers.head import AnswerHead
from lluda.serving.answers.logprobs import chat_logprob
from lluda.serving.answers.spoken_answers import SECONDS
from lluda.serving.reading.pieces import CallArguments, CallStarted, Content, Finished, Piece, Sound, Thought


class ChatChunks:
    """The chunks of one choice. ``usage``: the stream ends with its usage, of which all chunks before say null."""

    def __init__(self, head: AnswerHead, index: int, view: ChatView, *, usage: bool) -> None:
        self._head, self._index, self._view = head, index, view
        self._base = head.object("chat.completion.chunk")
        self._usage: dict[str, Any] = {"usage": None} if usage else {}
        self._texts: list[str] = []

    @property
    def transcript(self) -> str:
        """The text so far."""
        return "".join(self._texts)

    def first(self) -> dict[str, Any]:
        """The role."""
        return self._chunk({"role": "assistant", "content": ""})

    def of(self, piece: Piece) -> list[dict[str, Any]]:
        """The chunks that say ``piece``; there may be none."""
        deltas: list[dict[str, Any]]
        match piece:
            case Content():
                return self._content(piece)
            case Thought(text):
                deltas = [{"reasoning_content": text}]
            case CallStarted(index, number, name):
                function = {"name": name, "arguments": ""}
                deltas = [_call({"index": index, "id": number, "type": "function", "function": function})]
            case CallArguments(index, text):
                deltas = [_call({"index": index, "function": {"arguments": text}})]
            case Sound(samples):
                data = base64.b64encode(pcm16(samples).tobytes()).decode()
                deltas = [{"audio": {"id": self._head.audio_id, "data": data}}]
            case Finished(reason):
                return [*self._end_of_sound(), self._chunk({}, reason)]
            case _:
                deltas = []
        return [self._chunk(delta) for delta in deltas]

    def _content(self, piece: Content) -> list[dict[str, Any]]:
        view, delta = self._view, dict[str, Any]()
        if view.text:
            delta["content"] = piece.text
        if view.spoken and piece.text:
            self._texts.append(piece.text)
            delta["audio"] = {"id": self._head.audio_id, "transcript": piece.text}
        if view.logprobs is None:
            return [self._chunk(delta)] if piece.text and delta else []
        entries = [chat_logprob(token, view.vocabulary, view.logprobs) for token in piece.tokens]
        return [self._chunk(delta, logprobs={"content": entries, "refusal": None} if entries else None)]

    def _end_of_sound(self) -> list[dict[str, Any]]:
        if not self._view.spoken:
            return []
        return [self._chunk({"audio": {"id": self._head.audio_id, "expires_at": self._head.created + SECONDS}})]

    def _chunk(
        self, delta: dict[str, Any], finish_reason: str | None = None, logprobs: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        choice = {"index": self._index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return self._base | {"choices": [choice], **self._usage}


def usage_chunk(head: AnswerHead, usage: dict[str, Any]) -> dict[str, Any]:
    """The last chunk, where the usage was asked for."""
    return head.object("chat.completion.chunk") | {"choices": [], "usage": usage}


def _call(call: dict[str, Any]) -> dict[str, Any]:
    return {"tool_calls": [call]}
