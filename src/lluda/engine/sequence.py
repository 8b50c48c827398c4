"""One decoder's tokens of one request: what was computed, what was sampled, and when it ends."""

from __future__ import annotations

import time

from torch import Tensor

from lluda.backends.components import Observer
from lluda.engine.cache import Slot
from lluda.engine.prompt_rows import PromptRows
from lluda.engine.request import Completion, Request, Token
from lluda.engine.sampling.sampler import SampledToken, Sampler, with_logprobs
from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.engine.speech.talker_prompt import CapturedHiddenStates
from lluda.errors import ContextExceeded, InvalidRequest
from lluda.inputs.text.text_stream import TextStream
from lluda.inputs.text.tokenizer import Tokenizer


class Sequence:
    """The tokens of one answer. ``limit``: positions that the context has; ``slot``: its keys and values, while it
    runs.

    Raises:
        InvalidRequest: an empty prompt or ids outside the vocabulary.
        ContextExceeded: prompt and max_tokens do not fit the context.
    """

    def __init__(
        self, request: Request, tokenizer: Tokenizer, vocabulary: int, limit: int,
        captured: CapturedHiddenStates | None = None,
    ) -> None:  # fmt: skip
        require_valid(request.prompt, vocabulary)
        params = request.sampling
        self.index, self.prompt = request.index, request.prompt
        self.max_tokens = tokens_at_most(len(self.prompt), params, limit, prefill_only=request.prefill_only)
        self.captured = captured
        self.stop_ids = frozenset(params.stop_token_ids).union(() if params.ignore_eos else request.end_ids)
        ends = frozenset(token for token in self.stop_ids if token < vocabulary)
        constraint = request.constraint.begin() if request.constraint else None
        self.sampler = Sampler(params, self.prompt.ids, vocabulary, end_ids=ends, constraint=constraint)
        self.slot: Slot | None = None
        self.reused = 0
        self.tokens: list[Token] = []
        self.finish_reason = ""
        self.prompt_logprobs: list[SampledToken] = []
        self._alternatives = params.prompt_logprobs
        self._text = TextStream(tokenizer, params.stop or ())
        self._started = time.perf_counter()
        self._first_token = 0.0

    @property
    def positions(self) -> int:
        """Positions it takes at most: the last token's is never computed."""
        return len(self.prompt) + self.max_tokens

    @property
    def computed(self) -> int:
        """Positions whose keys and values are stored."""
        return self.slot.cache.length if self.slot else 0

    @property
    def prompt_left(self) -> int:
        """Rows of the prompt still to be computed."""
        return 0 if self.tokens else max(0, len(self.prompt) - self.computed)

    def forget_unsampled(self) -> None:
        """Go back to before a step that failed: its row may be stored, but no token was taken after it."""
        if self.slot is not None:
            self.slot.cache.truncate(min(self.computed, len(self.prompt) + len(self.tokens) - 1))

    def begin(self, slot: Slot, reused: int) -> None:
        """Run on ``slot``, which holds the first ``reused`` rows of the prompt."""
        self.slot, self.reused = slot, reused
        self._started = time.perf_counter()

    @property
    def scores_prompt(self) -> bool:
        """Whether the prompt's log-probabilities are wanted, so that all its rows are to be computed, with logits."""
        return self._alternatives is not None

    def score(self, row: int, logits: Tensor) -> None:
        """Take float logits ``[rows, vocab]`` (on the CPU) after the rows of the prompt from ``row`` on."""
        assert self._alternatives is not None, "nobody asked for log-probabilities of the prompt"
        if not self.prompt_logprobs:
            self.prompt_logprobs.append(SampledToken(self.prompt.ids[0]))
        following = self.prompt.ids[row + 1 : row + 1 + len(logits)]
        for token, own in zip(following, logits, strict=False):  # nothing follows the last row
            self.prompt_logprobs.append(with_logprobs(own, token, self._alternatives))

    def end_without_tokens(self) -> None:
        """Where only the prompt's rows or log-probabilities were asked for."""
        self._first_token = time.perf_counter()
        self.finish_reason = "length"

    def observe(self, start: int) -> Observer | None:
        """Whom to tell of a step that begins with row ``start`` of the prompt."""
        return self.captured.observer(start) if self.captured and self.captured.rows else None

    def sample(self, logits: Tensor) -> Token:
        """The next token, of float logits ``[vocab]``."""
        return self.take(self.sampler.sample(logits))

    def take(self, sampled: SampledToken) -> Token:
        """Record one sampled token and decide whether it was the last."""
        if not self.tokens:
            self._first_token = time.perf_counter()
        ended = sampled.id in self.stop_ids
        text = "" if ended else self._text.push(sampled.id)
        if ended or self._text.stopped is not None or self.sampler.must_end:
            self.finish_reason = "stop"
        elif len(self.tokens) + 1 >= self.max_tokens:
            self.finish_reason = "length"
        if self.finish_reason and self._text.stopped is None:
            text += self._text.finish()
        token = Token(self.index, sampled.id, text, sampled.logprob, sampled.top)
        self.tokens.append(token)
        return token

    def completion(self, finish_reason: str | None = None) -> Completion:
        """The answer as far as it came."""
        now = time.perf_counter()
        first = self._first_token or now
        return Completion(
            index=self.index,
            text="".join(token.text for token in self.tokens),
            token_ids=tuple(token.id for token in self.tokens),
            finish_reason=finish_reason or self.finish_reason,
            prompt_tokens=len(self.prompt),
            tokens=tuple(self.tokens),
            prefill_seconds=first - self._started,
            decode_seconds=now - first,
            reused_tokens=self.reused,
            prompt_logprobs=tuple(self.prompt_logprobs),
        )


def require_valid(prompt: PromptRows, vocabulary: int) -> None:
    """InvalidRequest: ``prompt`` is empty, or holds ids that are none of the vocabulary's."""
    if not prompt.ids:
        raise InvalidRequest("the prompt is empty: give at least one token")
    outside = next((token for token in prompt.ids if not 0 <= token < vocabulary), None)
    if outside is not None:
        raise InvalidRequest(f"the prompt holds token id {outside}; ids go from 0 to {vocabulary - 1}")


def tokens_at_most(prompt: int, params: SamplingParams, limit: int, *, prefill_only: bool = False) -> int:
    """How many tokens may follow ``prompt`` tokens in a context of ``limit``. ContextExceeded: none, or fewer than
    max_tokens."""
    if (params.max_tokens == 0 or prefill_only) and prompt <= limit:
        return 0
    if prompt >= limit:
        raise ContextExceeded(f"the prompt has {prompt} tokens but the context holds {limit}; shorten it")
    left = limit - prompt
    if params.max_tokens is None and params.max_length is not None:
        left = min(left, params.max_length - prompt)
    if left < 1:
        raise ContextExceeded(
            f"the prompt has {prompt} tokens but max_length (of generation_config.json, where the request has "
            f"none) is {params.max_length} for prompt and answer together; ask for a number of max_tokens instead"
        )
    if params.max_tokens is None or (params.clamp_max_tokens and params.max_tokens > left):
        return left
    if params.max_tokens > left:
        raise ContextExceeded(
            f"max_tokens {params.max_tokens} after a prompt of {prompt} tokens exceeds the context of "
            f"{limit}; ask for at most {left}"
        )
    return params.max_tokens
