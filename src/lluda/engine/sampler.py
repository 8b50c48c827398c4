"""Choosing the next token: what a request asks for (:class:`SamplingParams`) and the state of one sequence
(:class:`Sampler`).

The steps run in the order of transformers' logits processors: penalties, suppression, temperature, top-k, top-p, min-p,
draw. Selection and draw are computed in float64 on the CPU, from float32 logits.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from lluda.errors import InvalidRequest, LludaError

MAX_LOGPROBS = 64
_MAX_STOPS = 64
_INT32_MAX = (1 << 31) - 1
_FULL_SORT_BELOW = 4096
_NUCLEUS_GUESS = 1024

# Inclusive ranges. Penalties of 0.01 to 100 keep every finite logit of a model finite in float32.
_NUMBERS = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 100.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
}
_INTEGERS = {
    "top_k": (0, _INT32_MAX),
    "seed": (0, (1 << 64) - 1),
    "max_tokens": (1, _INT32_MAX),
    "logprobs": (0, MAX_LOGPROBS),
}
_NOTES = {"temperature": "; 0 is greedy", "top_k": "; 0 is off"}

# What a request without a value gets where the model's file has none either. Temperature and top_k depend on do_sample.
_NEUTRAL = {
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
_SAMPLED = {"temperature": 1.0, "top_k": 50}
_GREEDY = {"temperature": 0.0, "top_k": 0}

# Keys of generation_config.json that would change the tokens and are not implemented, with the values that do nothing.
_UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "bad_words_ids": (),
    "begin_suppress_tokens": (),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "exponential_decay_length_penalty": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "guidance_scale": (1,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "no_repeat_ngram_size": (0,),
    "num_beams": (1,),
    "penalty_alpha": (0,),
    "sequence_bias": (),
    "suppress_tokens": (),
    "top_h": (),
    "typical_p": (1,),
}


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
    * ``stop``: strings that end the answer (one string is accepted and wrapped); ``stop_token_ids``: ids that do,
      beside the model's own end-of-text ids, which ``ignore_eos`` switches off.
    * ``max_tokens``: at least 1; None is bounded by the context alone.
    * ``logprobs``: report the token's log-probability with this many alternatives (0 to 64); None reports none.

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
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    max_tokens: int | None = None
    logprobs: int | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        for field in (*_NUMBERS, *_INTEGERS):
            value = getattr(self, field)
            if value is not None:
                object.__setattr__(self, field, _checked(field, value))
        object.__setattr__(self, "stop", _stop_strings(self.stop))
        object.__setattr__(self, "stop_token_ids", _stop_ids(self.stop_token_ids))
        if not isinstance(self.ignore_eos, bool):
            raise InvalidRequest(f"ignore_eos must be true or false; got {_shown(self.ignore_eos)}")

    def with_defaults(self, generation_config: Mapping[str, Any]) -> SamplingParams:
        """These values with each None replaced by the model's default (``{}`` if it ships no file).

        ``do_sample`` false or absent means greedy, as in transformers, whatever ``temperature`` stands beside it; if
        true, ``temperature`` defaults to 1 and ``top_k`` to 50. ``max_new_tokens`` gives ``max_tokens``. ``seed``,
        ``max_tokens`` (without a default in the file) and ``logprobs`` stay None.

        Raises:
            InvalidRequest: a value in the file that breaks its rule, or asks for a method that is not implemented.
        """
        defaults = _model_defaults(generation_config)
        return replace(self, **{name: value for name, value in defaults.items() if getattr(self, name) is None})


@dataclass(frozen=True, slots=True)
class SampledToken:
    """A chosen token; if log-probabilities were asked for, its own and the most likely ``(id, logprob)``, best first
    (of equals the lowest id first). They are natural logarithms of the model's own distribution: the log-softmax of
    the raw logits, before penalties, suppression and temperature."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Chooses the tokens of one sequence.

    It counts the ids seen and has a random generator of its own, so the answer does not depend on what else is in the
    batch. One uniform number is drawn per sampled token, none for a greedy one.

    Args:
        params: Nones take the defaults of a model without a ``generation_config.json``.
        prompt_ids: ids the repetition penalty counts as seen; those of ``vocab`` and above are ignored.
        vocab: number of logits.
        suppress: ids never to choose.

    Raises:
        InvalidRequest: ``suppress`` names ids outside the vocabulary or all of it; a negative prompt id.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_ids: Sequence[int],
        vocab: int,
        *,
        suppress: frozenset[int] = frozenset(),
    ) -> None:
        params = params.with_defaults({})
        self.vocab = vocab
        self.seed = secrets.randbits(63) if params.seed is None else params.seed
        self._temperature = _resolved(params.temperature)
        self._top_k = int(_resolved(params.top_k))
        self._top_p = _resolved(params.top_p)
        self._min_p = _resolved(params.min_p)
        self._repetition = _resolved(params.repetition_penalty)
        self._presence = _resolved(params.presence_penalty)
        self._frequency = _resolved(params.frequency_penalty)
        self._logprobs = params.logprobs
        self._generator = torch.Generator().manual_seed(self.seed)
        self._seen = _mask(prompt_ids, vocab) if self._repetition != 1.0 else None
        self._counts = torch.zeros(vocab) if self._presence or self._frequency else None
        self._suppressed = _suppressed(suppress, vocab) if suppress else None

    def sample(self, logits: Tensor) -> SampledToken:
        """The next token from ``logits`` [vocab] (any float dtype and device), which is remembered as generated.

        Greedy takes the argmax. Otherwise the draw inverts the cumulative distribution of the tokens kept, in order of
        their ids: the chosen one is the first whose cumulative probability exceeds a uniform number of [0, 1). In that
        order rounding noise in the logits moves the borders between tokens a little, where the order of probability
        would exchange whole tokens.

        Raises:
            LludaError: the logits hold NaN or +inf, or leave no token that may be chosen.
        """
        raw, scores = self._scores(logits)
        token = self._draw(scores) if self._temperature else _argmax(scores)
        self._remember(token)
        return SampledToken(token) if self._logprobs is None else _report(raw, token, self._logprobs)

    def probabilities(self, logits: Tensor) -> Tensor:
        """The distribution [vocab] (float64, CPU) that :meth:`sample` would draw from; nothing is remembered."""
        _, scores = self._scores(logits)
        result = torch.zeros(self.vocab, dtype=torch.float64)
        if not self._temperature:
            result[_argmax(scores)] = 1.0
            return result
        ids, weights = self._kept(scores)
        result[slice(None) if ids is None else ids] = weights / weights.sum()
        return result

    def _scores(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The logits as float32, and with penalties and suppression (the same tensor if there are none)."""
        assert logits.shape == (self.vocab,), f"logits {tuple(logits.shape)} for a vocabulary of {self.vocab}"
        raw = logits.detach().float()
        if self._seen is None and self._counts is None and self._suppressed is None:
            return raw, raw
        _require_finite(float(raw.max()))  # the steps below could hide a NaN
        scores = raw
        if self._seen is not None:
            self._seen = self._seen.to(raw.device)
            penalised = torch.where(scores < 0, scores * self._repetition, scores / self._repetition)
            scores = torch.where(self._seen, penalised, scores)
        if self._counts is not None:
            self._counts = self._counts.to(raw.device)
            scores = scores - self._frequency * self._counts - self._presence * (self._counts > 0)
        if self._suppressed is not None:
            self._suppressed = self._suppressed.to(raw.device)
            scores = scores.masked_fill(self._suppressed, -math.inf)
        return raw, scores

    def _kept(self, scores: Tensor) -> tuple[Tensor | None, Tensor]:
        """Ids in ascending order (None: all) and their weights: probabilities over that of the most likely, with
        zero for tokens that are not kept."""
        peak = float(scores.max())
        _require_finite(peak)
        ids = None
        if 0 < self._top_k < self.vocab:
            ids = _at_least_rank(scores, self._top_k)
            scores = scores[ids]
        # Relative to the peak nothing overflows, however low the temperature.
        weights = ((scores.to("cpu", torch.float64) - peak) / self._temperature).exp()
        if self._top_p < 1.0:
            weights = weights * _nucleus(weights, self._top_p)
        if self._min_p > 0.0:
            weights = weights * (weights >= self._min_p)
        return None if ids is None else ids.cpu(), weights

    def _draw(self, scores: Tensor) -> int:
        ids, weights = self._kept(scores)
        cumulative = weights.cumsum(0)
        total = cumulative[-1]
        uniform = torch.rand((), dtype=torch.float64, generator=self._generator)
        index = int(torch.searchsorted(cumulative, uniform * total, right=True))
        # The product may round up to the total itself; that means the last token with a weight.
        index = min(index, int(torch.searchsorted(cumulative, total)))
        return index if ids is None else int(ids[index])

    def _remember(self, token: int) -> None:
        if self._seen is not None:
            self._seen[token] = True
        if self._counts is not None:
            self._counts[token] += 1


def _argmax(scores: Tensor) -> int:
    token = int(scores.argmax())
    _require_finite(float(scores[token]))  # NaN counts as the largest, so one look finds any
    return token


def _require_finite(peak: float) -> None:
    """Refuse logits whose maximum is ``peak`` if they define no distribution."""
    if peak == -math.inf:
        raise LludaError(
            "no token can be sampled: all logits of tokens that may be chosen are -inf; "
            "allow more tokens, or check the model's weights with --check-tensors"
        )
    if not math.isfinite(peak):
        raise LludaError(
            f"the model's logits hold {'NaN' if math.isnan(peak) else '+inf'}, so no token can be sampled; "
            "check the weights with --check-tensors, or compute in float32 (--dtype f32)"
        )


def _at_least_rank(scores: Tensor, rank: int) -> Tensor:
    """Ids, ascending, of the ``rank`` largest scores and of all that tie with the smallest of these."""
    return (scores >= torch.topk(scores, rank).values[-1]).nonzero().flatten()


def _nucleus(weights: Tensor, top_p: float) -> Tensor:
    """Which of the unnormalised ``weights`` are kept by top-p: those before which, in descending order, less than
    ``top_p`` of the total has gone (Holtzman et al. 2020)."""
    needed = top_p * float(weights.sum())
    candidates = torch.arange(len(weights))
    if len(weights) > _FULL_SORT_BELOW:
        # Sorting a whole vocabulary costs more than all the rest; mostly its head holds the nucleus.
        head = _at_least_rank(weights, _NUCLEUS_GUESS)
        if float(weights[head].sum()) >= needed:
            candidates = head
    values, order = torch.sort(weights[candidates], descending=True, stable=True)
    kept = values.cumsum(0) - values < needed
    kept[0] = True
    mask = torch.zeros(len(weights), dtype=torch.bool)
    mask[candidates[order[kept]]] = True
    return mask


def _report(raw: Tensor, token: int, alternatives: int) -> SampledToken:
    logits = raw.to("cpu", torch.float64)
    norm = float(logits.logsumexp(0))
    top: tuple[tuple[int, float], ...] = ()
    if alternatives:
        ids = _at_least_rank(logits, min(alternatives, len(logits)))
        values, order = torch.sort(logits[ids], descending=True, stable=True)
        pairs = zip(ids[order[:alternatives]].tolist(), values[:alternatives].tolist(), strict=True)
        top = tuple((i, value - norm) for i, value in pairs)
    return SampledToken(token, float(logits[token]) - norm, top)


def _mask(ids: Iterable[int], vocab: int) -> Tensor:
    """A bool mask [vocab] of the ids, those past the vocabulary left out."""
    distinct = sorted(set(ids))
    if distinct and distinct[0] < 0:
        raise InvalidRequest(f"token ids must not be negative; got {distinct[0]}")
    mask = torch.zeros(vocab, dtype=torch.bool)
    mask[torch.tensor([i for i in distinct if i < vocab], dtype=torch.long)] = True
    return mask


def _suppressed(ids: frozenset[int], vocab: int) -> Tensor:
    if min(ids) < 0 or max(ids) >= vocab:
        raise InvalidRequest(
            f"suppress holds ids from {min(ids)} to {max(ids)}; they must be in the vocabulary, 0 to {vocab - 1}"
        )
    if len(ids) == vocab:
        raise InvalidRequest(f"suppress holds all {vocab} tokens; at least one must be left to choose")
    return _mask(ids, vocab)


def _resolved(value: float | None) -> float:
    assert value is not None, "with_defaults leaves no None here"
    return value


def _model_defaults(raw: Mapping[str, Any]) -> dict[str, float | int]:
    """Every sampling value that ``generation_config.json`` determines or leaves neutral."""
    name = "generation_config.json"
    if not isinstance(raw, Mapping):
        raise InvalidRequest(f"{name}: must be a JSON object; got {type(raw).__name__}")
    for key, harmless in _UNSUPPORTED.items():
        value = raw.get(key)
        if value is not None and value not in harmless and value != []:
            raise InvalidRequest(
                f"{name}: {key} {_shown(value)} asks for a method that is not implemented; remove the key to do without"
            )
    sampled = raw.get("do_sample")
    if sampled is not None and not isinstance(sampled, bool):
        raise InvalidRequest(f"{name}: do_sample must be true or false; got {_shown(sampled)}")
    given: dict[str, float | int] = {}
    for field in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_tokens"):
        key = "max_new_tokens" if field == "max_tokens" else field
        if raw.get(key) is not None:
            given[field] = _checked(field, raw[key], f"{name}: {key}")
    if not sampled:
        given["temperature"] = 0.0
    return {**_NEUTRAL, **(_SAMPLED if sampled else _GREEDY), **given}


def _checked(field: str, value: object, label: str = "") -> float | int:
    """The value if it keeps its field's rule; ``label`` names it in the error instead of ``field``."""
    integer = field in _INTEGERS
    minimum, maximum = _INTEGERS[field] if integer else _NUMBERS[field]
    kind = Integral if integer else Real
    # A comparison with NaN is false, so NaN fails it.
    if isinstance(value, kind) and not isinstance(value, bool) and minimum <= value <= maximum:  # type: ignore[operator]
        return int(value) if integer else float(value)  # type: ignore[call-overload, no-any-return]
    raise InvalidRequest(
        f"{label or field} must be {'an integer' if integer else 'a number'} from {minimum} to {maximum}"
        f"{_NOTES.get(field, '')}; got {_shown(value)}"
    )


def _stop_strings(value: object) -> tuple[str, ...]:
    strings = _items("stop", "a string or a list of strings", (value,) if isinstance(value, str) else value)
    for one in strings:
        if not isinstance(one, str) or not one:
            raise InvalidRequest(f"stop must hold strings that are not empty; got {_shown(one)}")
    return strings


def _stop_ids(value: object) -> tuple[int, ...]:
    ids = _items("stop_token_ids", "a list of token ids", value)
    for one in ids:
        if isinstance(one, bool) or not isinstance(one, Integral) or not 0 <= int(one) <= _INT32_MAX:
            raise InvalidRequest(f"stop_token_ids must hold integers from 0 to {_INT32_MAX}; got {_shown(one)}")
    return tuple(int(one) for one in ids)


def _items(field: str, rule: str, value: object) -> tuple[Any, ...]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple | set | frozenset):
        raise InvalidRequest(f"{field} must be {rule}; got {_shown(value)}")
    if len(value) > _MAX_STOPS:
        raise InvalidRequest(f"{field} must hold at most {_MAX_STOPS} items; got {len(value)}")
    return tuple(value)


def _shown(value: object) -> str:
    """The value on one line of bounded length. Python refuses to print integers of thousands of digits."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    return f"{value!r:.80}"
