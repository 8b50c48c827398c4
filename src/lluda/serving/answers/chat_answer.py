"""An answer as one ``chat.completion``."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from lluda.serving.answers.head import AnswerHead
from lluda.serving.answers.logprobs import ScoredToken, chat_logprob
from lluda.serving.answers.spoken_answers import SECONDS
from lluda.serving.answers.usage import PromptCounts, usage
from lluda.serving.reading.marks import Vocabulary
from lluda.serving.reading.pieces import (
    AnswerCounts,
    CallArguments,
    CallBroken,
    CallStarted,
    Content,
    Finished,
    Piece,
    Sound,
    Thought,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatView:
    """What of an answer is shown: its ``text``, its sound (``spoken``), ``logprobs`` with so many alternatives (None:
    none)."""

    vocabulary: Vocabulary
    text: bool = True
    spoken: bool = False
    logprobs: int | None = None


@dataclass(slots=True, eq=False)
class ChatChoice:
    """One choice; `add` its pieces in order."""

    index: int
    view: ChatView
    content: list[str] = field(default_factory=list)
    thought: list[str] = field(default_factory=list)
    calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    logprobs: list[msgspec.Raw] = field(default_factory=list)
    sounds: list[NDArray[np.float32]] = field(default_factory=list)
    finish_reason: str = ""
    counts: AnswerCounts | None = None

    def _scored(self, token: ScoredToken, count: int) -> msgspec.Raw:
        """As JSON already: a long answer has hundreds of thousands of objects, which the garbage collector looks at."""
        return msgspec.Raw(msgspec.json.encode(chat_logprob(token, self.view.vocabulary, count)))

    def add(self, piece: Piece) -> None:
        """What comes next."""
        match piece:
            case Content(text, tokens):
                self.content.append(text)
                if self.view.logprobs is not None:
                    self.logprobs += [self._scored(token, self.view.logprobs) for token in tokens]
            case Thought(text):
                self.thought.append(text)
            case CallStarted(index, number, name):
                function = {"name": name, "arguments": ""}
                self.calls[index] = {"id": number, "type": "function", "function": function}
            case CallArguments(index, text):
                self.calls[index]["function"]["arguments"] += text
            case CallBroken(index) if index is not None:
                del self.calls[index]
            case Sound(samples):
                self.sounds.append(samples)
            case Finished(reason, counts):
                self.finish_reason, self.counts = reason, counts

    @property
    def transcript(self) -> str:
        """The text."""
        return "".join(self.content)

    def as_object(self, audio: dict[str, Any] | None) -> dict[str, Any]:
        """The choice, with its encoded sound."""
        calls = [self.calls[index] for index in sorted(self.calls)]
        text = self.transcript if self.view.text else ""
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if not self.view.text or (calls and not text) else text,
            "refusal": None,
            "reasoning_content": "".join(self.thought) or None,
        }
        if calls:
            message["tool_calls"] = calls
        if audio is not None:
            message["audio"] = audio
        logprobs = {"content": self.logprobs, "refusal": None} if self.view.logprobs is not None else None
        return {"index": self.index, "message": message, "logprobs": logprobs, "finish_reason": self.finish_reason}


def audio_object(head: AnswerHead, encoded: bytes, transcript: str) -> dict[str, Any]:
    """The sound of an answer."""
    return {
        "id": head.audio_id,
        "data": base64.b64encode(encoded).decode(),
        "expires_at": head.created + SECONDS,
        "transcript": transcript,
    }


def chat_completion(
    head: AnswerHead, choices: Sequence[ChatChoice], media: PromptCounts, audio: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The whole answer."""
    counts = [choice.counts for choice in choices if choice.counts is not None]
    return head.object("chat.completion") | {
        "choices": [choice.as_object(audio) for choice in choices],
        "usage": usage([counts], media),
    }
