"""What a request asks of the choice of tokens, checked, and completed by the model's ``generation_config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lluda.engine.sampling.generation_config import sampling_defaults
from lluda.engine.sampling.sampling_values import (
    INTEGERS,
    MAX_LOGPROBS,
    NUMBERS,
    biases,
    checked_number,
    shown,
    stop_strings,
    token_ids,
)
from lluda.errors import InvalidRequest

__all__ = ["MAX_LOGPROBS", "SamplingParams"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the tokens of one answer are chosen and when it ends.

    None means the default of the model's ``generation_config.json``, else lluda's; :meth:`with_defaults` fills it in.

    * ``temperature``: 0 to 100; 0 takes the most likely token (greedy; of equals the lowest id).
    * ``top_k``: keep the k most likely tokens and all that tie with the last of them; 0 is off.
    * ``top_p``: keep the fewest tokens whose probabilities reach top_p, at least one (of equals at the border, the
      lowest ids); 1 is off.
    * ``min_p``: drop tokens less likely than min_p times the most likely one; 0 is off.
    * ``repetition_penalty``: 0.01 to 100; positive logits of tokens in the prompt or the answer are divided by it,
      negative ones multiplied (Keskar et al. 2019, as transformers); 1 is off.
    * ``presence_penalty``, ``frequency_penalty``: -2 to 2; subtracted from the logits of tokens of the answer, once,
      and once for each occurrence (OpenAI's definition; the prompt does not count); 0 is off.
    * ``seed``: 0 to 2**64 - 1; None draws a fresh one.
    * ``stop``: strings that end the answer (one string is accepted and wrapped), in place of the model's
      ``stop_strings``; ``stop_token_ids``: ids that do, beside the model's own ends, which ``ignore_eos`` switches off.
    * ``max_tokens``: at least 1; None is bounded by ``max_length`` (prompt and answer together) and by the context.
      More than the context has room for is refused, unless ``clamp_max_tokens`` says that the room will do. With
      ``prompt_logprobs`` it may be 0.
    * ``min_tokens``: so many tokens come before an id may end the answer.
    * ``suppress_tokens``: ids that are never chosen; ``begin_suppress_tokens``: not as the first token.
    * ``logit_bias``: -100 to 100 by token id (kept as pairs), added to the logits after the penalties; an id of -100 is
      never chosen.
    * ``logprobs``: report the token's log-probability with this many alternatives (0 to 64); None reports none.
      ``prompt_logprobs``: the same of each token of the prompt (`PromptLogprobs`); no earlier prompt's rows are used.

    Raises:
        InvalidRequest: a value of a wrong type or out of its range, naming field, rule and value.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] | None = None
    stop_token_ids: tuple[int, ...] = ()
    max_tokens: int | None = None
    max_length: int | None = None
    min_tokens: int | None = None
    suppress_tokens: tuple[int, ...] | None = None
    begin_suppress_tokens: tuple[int, ...] | None = None
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    ignore_eos: bool = False
    clamp_max_tokens: bool = False

    def __post_init__(self) -> None:
        for field in (*NUMBERS, *INTEGERS):
            value = getattr(self, field)
            if value is not None and not (field == "max_tokens" and self._asks_for_no_token):
                object.__setattr__(self, field, checked_number(field, value))
        if self.stop is not None:
            object.__setattr__(self, "stop", stop_strings(self.stop))
        object.__setattr__(self, "stop_token_ids", token_ids("stop_token_ids", self.stop_token_ids))
        for field in ("suppress_tokens", "begin_suppress_tokens"):
            if getattr(self, field) is not None:
                object.__setattr__(self, field, token_ids(field, getattr(self, field)))
        if self.logit_bias is not None:
            object.__setattr__(self, "logit_bias", biases(self.logit_bias))
        for field in ("ignore_eos", "clamp_max_tokens"):
            if not isinstance(getattr(self, field), bool):
                raise InvalidRequest(f"{field} must be true or false; got {shown(getattr(self, field))}")

    @property
    def _asks_for_no_token(self) -> bool:
        """Whether only the prompt's log-probabilities are wanted."""
        return self.max_tokens == 0 and self.max_tokens is not False and self.prompt_logprobs is not None

    def with_defaults(self, generation_config: Mapping[str, Any]) -> SamplingParams:
        """These values with each None replaced by the model's default (``{}`` if it ships no file).

        ``do_sample`` false or absent means greedy, as in transformers, whatever ``temperature`` stands beside it; if
        true, ``temperature`` defaults to 1 and ``top_k`` to 50. ``max_new_tokens`` gives ``max_tokens``,
        ``min_new_tokens`` ``min_tokens`` and ``stop_strings`` ``stop``. ``seed`` and ``logprobs`` stay None, and
        ``max_tokens`` and ``max_length`` without a default in the file.

        Raises:
            InvalidRequest: a value in the file that breaks its rule, or asks for a method that is not implemented.
        """
        defaults = sampling_defaults(generation_config)
        missing: dict[str, Any] = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        return replace(self, **missing)
