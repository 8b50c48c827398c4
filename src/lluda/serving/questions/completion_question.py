"""What a body of /v1/completions asks: prompts, each continued ``n`` times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lluda.engine.prompt_rows import PromptRows
from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.serving.answers.completion_answer import CompletionChoice, CompletionView
from lluda.serving.http.errors import invalid
from lluda.serving.limits import Limits
from lluda.serving.questions.sampling import choices, sampling_params, seeded, within
from lluda.serving.wire.completions import CompletionBody

if TYPE_CHECKING:
    from lluda.api.model import Model
    from lluda.engine.request import Request

DEFAULT_MAX_TOKENS = 16
"""OpenAI's, of this endpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionQuestion:
    """``prompts``: texts, or lists of token ids; ``choices`` continuations of each."""

    prompts: Sequence[str] | Sequence[Sequence[int]]
    sampling: SamplingParams
    choices: int
    echo: bool
    logprobs: int | None

    @property
    def sequences(self) -> int:
        """Continuations in all."""
        return len(self.prompts) * self.choices


def completion_question(body: CompletionBody, limits: Limits) -> CompletionQuestion:
    """ApiError 400: the body contradicts itself, or is beyond a limit."""
    if body.suffix is not None:
        raise invalid("suffix is not served: nothing is written between two texts", "suffix", "unsupported_value")
    count = choices(body, limits)
    if body.best_of is not None and body.best_of != count:
        raise invalid(f"best_of must be n ({count}), not {body.best_of}", "best_of", "unsupported_value")
    if body.stream_options is not None and not body.stream:
        raise invalid("stream_options is for stream: true", "stream_options")
    logprobs = None if body.logprobs is None else within(body.logprobs, limits.top_logprobs, "logprobs")
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    echo = bool(body.echo)
    if not max_tokens and not echo:
        raise invalid("max_tokens must be at least 1, not 0, without echo", "max_tokens")
    # Prompts are scored where they are shown; with no token to come the engine is asked for scores in any case.
    scored = (logprobs or 0) if echo and (logprobs is not None or not max_tokens) else None
    sampling = sampling_params(body, limits, max_tokens=max_tokens, logprobs=logprobs, prompt_logprobs=scored)
    return CompletionQuestion(
        prompts=_prompts(body, limits, count), sampling=sampling, choices=count, echo=echo, logprobs=logprobs
    )


def _prompts(body: CompletionBody, limits: Limits, count: int) -> Sequence[str] | Sequence[Sequence[int]]:
    given = body.prompt
    if isinstance(given, str):
        prompts: Sequence[str] | Sequence[Sequence[int]] = [given]
    elif isinstance(given[0], int):
        prompts = [given]
    else:
        prompts = given
    most = limits.running + limits.waiting
    if len(prompts) * count > most:
        message = f"prompt has {len(prompts)} entries of {count} continuations each; at most {most} sequences are taken"
        raise invalid(message, "prompt")
    size = sum(len(text.encode()) for text in prompts if isinstance(text, str))
    if size > limits.text_bytes:
        raise invalid(f"the text of prompt has {size:,} bytes; at most {limits.text_bytes:,} are taken", "prompt")
    return prompts


@dataclass(frozen=True, slots=True)
class AskedCompletions:
    """``requests``, and of each prompt its ``choices`` in the order of the requests."""

    requests: Sequence[Request]
    choices: Sequence[Sequence[CompletionChoice]]


def asked_completions(model: Model, question: CompletionQuestion) -> AskedCompletions:
    """The requests of a question; blocking. InvalidRequest: a prompt that the model does not take."""
    view = CompletionView(vocabulary=model.tokenizer, echo=question.echo, logprobs=question.logprobs)
    requests: list[Request] = []
    choices: list[list[CompletionChoice]] = []
    for number, (given, ids) in enumerate(zip(question.prompts, model.encode_prompt(question.prompts), strict=True)):
        prompt, text = PromptRows(ids), given if isinstance(given, str) else model.tokenizer.decode(ids)
        choices.append([])
        for choice in range(question.choices):
            index = number * question.choices + choice
            requests.append(model.request(prompt, seeded(question.sampling, choice), turn=False, index=index))
            choices[-1].append(CompletionChoice(index, view, text))
    return AskedCompletions(requests, choices)
