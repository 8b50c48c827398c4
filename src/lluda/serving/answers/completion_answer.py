"""A plain continuation as a ``text_completion``, whole or as the chunks of a stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lluda.engine.request import Completion, PromptLogprobs, SpeechEvent, Token
from lluda.serving.answers.head import AnswerHead
from lluda.serving.answers.logprobs import CompletionLogprobs
from lluda.serving.answers.usage import usage
from lluda.serving.http.errors import ApiError
from lluda.serving.reading.marks import Vocabulary
from lluda.serving.reading.pieces import AnswerCounts


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionView:
    """What of a continuation is shown. ``echo``: the prompt before it; ``logprobs``: so many alternatives of each token
    (None: nothing is reported)."""

    vocabulary: Vocabulary
    echo: bool = False
    logprobs: int | None = None


@dataclass(slots=True, eq=False)
class CompletionChoice:
    """One continuation of one prompt. `add` the engine's events in order; what each brings is a part of the choice, in
    the same form as the `whole`."""

    index: int
    view: CompletionView
    prompt: str = ""
    finish_reason: str | None = None
    counts: AnswerCounts | None = None
    _parts: list[dict[str, Any]] = field(default_factory=list)
    _logprobs: CompletionLogprobs = field(init=False)

    def __post_init__(self) -> None:
        self._logprobs = CompletionLogprobs(self.view.vocabulary, self.view.logprobs or 0)

    def begin(self) -> Iterator[dict[str, Any]]:
        """The echo, where its tokens are not scored."""
        if self.view.echo and self.view.logprobs is None and self.prompt:
            yield self._part(self.prompt)

    def add(self, event: SpeechEvent) -> Iterator[dict[str, Any]]:
        """The parts that are new with ``event``. ApiError: the engine gave the continuation up."""
        match event:
            case PromptLogprobs(tokens=tokens) if self.view.logprobs is not None:
                self._logprobs.add(tokens)
                yield self._part(self.prompt)
            case Token():
                self._logprobs.add([event])  # an end too: lm-eval counts on as many entries as there are tokens
                if event.text:
                    yield self._part(event.text)
            case Completion(finish_reason=reason):
                if reason == "cancelled":
                    message = "the answer was given up before its end"
                    raise ApiError(503, "draining", message, headers={"retry-after": "2"})
                self.finish_reason = reason
                self.counts = AnswerCounts(event.prompt_tokens, event.reused_tokens, len(event.token_ids))
                yield self._part("")

    def whole(self) -> dict[str, Any]:
        """All parts together."""
        logprobs = None
        if self.view.logprobs is not None:
            lists = [part["logprobs"] for part in self._parts]
            logprobs = {name: [value for one in lists for value in one[name]] for name in lists[0]}
        text = "".join(part["text"] for part in self._parts)
        return {"index": self.index, "text": text, "logprobs": logprobs, "finish_reason": self.finish_reason}

    def _part(self, text: str) -> dict[str, Any]:
        logprobs = self._logprobs.take() if self.view.logprobs is not None else None
        part = {"index": self.index, "text": text, "logprobs": logprobs, "finish_reason": self.finish_reason}
        self._parts.append(part)
        return part


def completion(head: AnswerHead, prompts: Sequence[Sequence[CompletionChoice]]) -> dict[str, Any]:
    """The whole answer: the choices of each prompt."""
    choices = [choice.whole() for one in prompts for choice in one]
    return head.object("text_completion") | {"choices": choices, "usage": completion_usage(prompts)}


def completion_usage(prompts: Sequence[Sequence[CompletionChoice]]) -> dict[str, Any]:
    """What they cost together."""
    return usage([[choice.counts for choice in one if choice.counts is not None] for one in prompts])
