"""The state of one sequence that chooses its next tokens.

The steps run in the order of transformers' logits processors: penalties, bias, suppression and constraint, temperature,
top-k, top-p, min-p, draw. Selection and draw are computed in float64 on the CPU, from float32 logits.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lluda.backends.capture import MOST_KEPT, RowChoice, RowSampling, RowSettings
from lluda.backends.sampling_table import sampling_table
from lluda.engine.sampling.constraint import ConstraintState
from lluda.engine.sampling.occurrences import Occurrences
from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.engine.sampling.sampling_values import MAX_BIAS
from lluda.errors import InvalidRequest, NumericalError

__all__ = ["SampledToken", "Sampler", "SamplingParams"]

_FULL_SORT_BELOW = 4096
_FEW_SCORES = 8192
"""That numpy chooses from: of more, torch finds the largest faster."""
_NUCLEUS_GUESS = 1024
_CHUNKS_A_RANK = 32
_LEAST_WIDTH = 16
"""Of a chunk whose maximum is worth taking."""
_DRAWN = 64
"""Uniform numbers drawn at once: the same as one by one, for a fraction of the time."""


_row_sampling: Callable[[tuple[object, ...]], RowSampling] = partial(tuple.__new__, RowSampling)


class SampledToken(NamedTuple):
    """A chosen token; if log-probabilities were asked for, its own and the most likely ``(id, logprob)``, best first
    (of equals the lowest id first). They are natural logarithms of the model's own distribution: the log-softmax of
    the raw logits, before penalties, suppression and temperature."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


_sampled_token: Callable[[tuple[object, ...]], SampledToken] = partial(tuple.__new__, SampledToken)


class Sampler:
    """Chooses the tokens of one sequence.

    It counts the ids seen and has a random generator of its own, so the answer does not depend on what else is in the
    batch. One uniform number is drawn per sampled token, none for a greedy one.

    Args:
        params: Nones take the defaults of a model without a ``generation_config.json``.
        prompt_ids: ids the repetition penalty counts as seen; those of ``vocab`` and above are ignored.
        vocab: number of logits.
        suppress: ids never to choose, beside those of ``params``.
        end_ids: ids not to choose as the first ``min_tokens`` tokens.
        constraint: what the tokens must keep to; ``end_ids`` may be chosen where it may end (those of ``params`` also
            where it has them as text).

    Raises:
        InvalidRequest: ids to suppress or to bias outside the vocabulary, or all of it; a negative prompt id.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_ids: Sequence[int],
        vocab: int,
        *,
        suppress: frozenset[int] = frozenset(),
        end_ids: frozenset[int] = frozenset(),
        constraint: ConstraintState | None = None,
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
        self._uniforms: list[float] = []
        repeats, counts = self._repetition != 1.0, bool(self._presence or self._frequency)
        self._seen = Occurrences(_known(prompt_ids, vocab)) if repeats or counts else None
        self._count = 0
        self._addends: tuple[int, Tensor] | None = None
        self._constraint, self._end_ids = constraint, end_ids
        bias = dict(params.logit_bias or ())
        self._bias = _Bias(bias, vocab) if bias else None
        always = suppress.union(params.suppress_tokens or (), (i for i, value in bias.items() if value == -MAX_BIAS))
        first = frozenset(params.begin_suppress_tokens or ())
        top_k = (self._top_k or vocab) if self._temperature else 1
        self._row: RowSettings | None = None
        if constraint is None and self._logprobs is None and min(top_k, vocab) <= MOST_KEPT:
            self._row = RowSettings(
                self._temperature or 1.0, top_k, self._top_p, self._min_p, self._repetition, self._presence,
                self._frequency,
            )  # fmt: skip
        # Ids not to choose, each while fewer tokens than this have been chosen.
        self._suppressed = [
            (until, _suppressed(ids | always, vocab))
            for until, ids in ((math.inf, always), (params.min_tokens or 0, end_ids), (1, first))
            if until and ids
        ]
        # Whether it is the same for each token but for the number drawn.
        self._is_plain = bool(self._row and self._temperature and self._takes_raw and not self._suppressed)

    def sample(self, logits: Tensor) -> SampledToken:
        """The next token from ``logits`` [vocab] (any float dtype and device), which is remembered as generated.

        Greedy takes the argmax. Otherwise the draw inverts the cumulative distribution of the tokens kept, in order of
        their ids: the chosen one is the first whose cumulative probability exceeds a uniform number of [0, 1). In that
        order rounding noise in the logits moves the borders between tokens a little, where the order of probability
        would exchange whole tokens.

        Raises:
            NumericalError: the logits hold NaN or +inf.
            InvalidRequest: no token may be chosen.
        """
        raw, scores = self._scores(logits)
        token = self._draw(scores) if self._temperature else _argmax(scores)
        self._remember(token)
        return SampledToken(token) if self._logprobs is None else with_logprobs(raw, token, self._logprobs)

    @property
    def takes_argmax(self) -> bool:
        """Whether it takes the largest of the model's logits as they are, and reports nothing of the others."""
        return not self._temperature and self._takes_raw and self._logprobs is None

    def on_device(self, device: torch.device) -> RowSampling | None:
        """What a captured step on ``device`` needs to choose as :meth:`sample` would; None where it must be given the
        logits: for a constraint or log-probabilities, or where top-k keeps too many."""
        if self._is_plain:  # quick: for each row of each step
            return _row_sampling((self._row, (self._uniforms or self._draw_uniforms())[-1], 0, 0, 0))
        if self._row is None:
            return None
        uniform = self._next_uniform() if self._temperature else 0.0
        occurrences, fed = self._seen.table_on(device, self.vocab) if self._seen is not None else (0, 0)
        active = [ids for until, ids in self._suppressed if self._count < until]
        addends = self._addends_on(device, active).data_ptr() if active or self._bias is not None else 0
        return RowSampling(self._row, uniform, occurrences, addends, fed)

    def accept(self, choice: RowChoice) -> SampledToken:
        """The next token as a step gives it: chosen on the device by :meth:`on_device` or, without that, as the argmax
        of a sampler that :attr:`takes_argmax`; or from its logits (:meth:`sample`, whose errors these are)."""
        if not isinstance(choice, tuple):
            return self.sample(choice)
        token, peak = choice
        if not math.isfinite(peak):
            _require_finite(peak)
        if self._is_plain:
            self._count += 1
            (self._uniforms or self._draw_uniforms()).pop()
        else:
            self._remember(token)
        return _sampled_token((token, None, ()))

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
        if self._takes_raw:
            return raw, raw
        _require_finite(_peak(raw))  # the steps below could hide a NaN
        scores = raw.clone()
        if self._seen is not None:
            ids, counts = self._seen.on(raw.device)
            scores[ids] = self._penalised(raw[ids], counts)
        if self._bias is not None:
            self._bias.add(scores)
        self._suppressed = [(until, ids.to(raw.device)) for until, ids in self._suppressed if self._count < until]
        for _, ids in self._suppressed:
            scores[ids] = -math.inf
        if self._constraint is not None:
            scores.masked_fill_(self._forbidden(self._constraint).to(raw.device), -math.inf)
        return raw, scores

    def _forbidden(self, constraint: ConstraintState) -> Tensor:
        """Ids that the constraint does not allow, bool ``[vocab]``."""
        allowed = constraint.allowed()
        if constraint.may_end:
            allowed[list(self._end_ids)] = True
        return torch.from_numpy(~allowed)

    def _penalised(self, scores: Tensor, counts: Tensor) -> Tensor:
        """Of ids that the prompt or the answer has, the answer ``counts`` times."""
        if self._repetition != 1.0:
            scores = torch.where(scores < 0, scores * self._repetition, scores / self._repetition)
        return scores - self._frequency * counts - self._presence * (counts > 0)

    @property
    def must_end(self) -> bool:
        """Whether no token may follow: the constraint is met, and nothing more fits it."""
        return self._constraint is not None and self._constraint.must_end

    @property
    def _takes_raw(self) -> bool:
        """Whether the next token is chosen from the model's logits as they are."""
        suppresses = any(self._count < until for until, _ in self._suppressed)
        return self._seen is None and self._bias is None and self._constraint is None and not suppresses

    def _kept(self, scores: Tensor) -> tuple[Tensor | None, Tensor]:
        """Ids in ascending order (None: all) and their weights: probabilities over that of the most likely, with
        zero for tokens that are not kept."""
        peak = _peak(scores)
        _require_finite(peak)
        ids = None
        if 0 < self._top_k < self.vocab:
            ids = _at_least_rank(scores, self._top_k)
            scores = scores[ids]
        # Relative to the peak nothing overflows, however low the temperature.
        weights = ((scores.cpu().double() - peak) / self._temperature).exp()
        if self._top_p < 1.0:
            weights = weights * _nucleus(weights, self._top_p)
        if self._min_p > 0.0:
            weights = weights * (weights >= self._min_p)
        return None if ids is None else ids.cpu(), weights

    def _draw(self, scores: Tensor) -> int:
        if scores.device.type == "cpu" and 0 < self._top_k < self.vocab <= _FEW_SCORES:
            return self._draw_of_few(scores.numpy())
        ids, weights = self._kept(scores)
        cumulative = weights.cumsum(0)
        total = cumulative[-1]
        index = int(torch.searchsorted(cumulative, self._next_uniform() * total, right=True))
        # The product may round up to the total itself; that means the last token with a weight.
        index = min(index, int(torch.searchsorted(cumulative, total)))
        return index if ids is None else int(ids[index])

    def _draw_of_few(self, scores: NDArray[np.float32]) -> int:
        """As `_kept` and `_draw` define it, in few operations: a code predictor chooses 15 codes a frame between passes
        that leave the caches empty, where each of torch's operations takes 10 to 20 us."""
        peak = float(scores.max())
        _require_finite(peak)
        last = len(scores) - self._top_k
        ids = np.flatnonzero(scores >= np.partition(scores, last)[last])
        weights = np.exp((scores[ids].astype(np.float64) - peak) / self._temperature)
        if self._top_p < 1.0:
            order = np.argsort(-weights, kind="stable")
            gone = weights[order].cumsum() - weights[order] >= self._top_p * weights.sum()
            gone[0] = False
            weights[order[gone]] = 0.0
        if self._min_p > 0.0:
            weights[weights < self._min_p] = 0.0
        cumulative = weights.cumsum()
        total = cumulative[-1]
        index = int(cumulative.searchsorted(self._next_uniform() * total, side="right"))
        return int(ids[min(index, int(cumulative.searchsorted(total)))])

    def _next_uniform(self) -> float:
        """The same until a token is remembered."""
        return (self._uniforms or self._draw_uniforms())[-1]

    def _draw_uniforms(self) -> list[float]:
        """The next numbers, the first of them last."""
        drawn: list[float] = torch.rand(_DRAWN, dtype=torch.float64, generator=self._generator).tolist()
        self._uniforms = drawn[::-1]
        return self._uniforms

    def _addends_on(self, device: torch.device, suppressed: Sequence[Tensor]) -> Tensor:
        """What is added to the scores ``[vocab]``: the bias, and -inf for what is ``suppressed``."""
        if self._addends is None or self._addends[0] != len(suppressed):
            table = sampling_table(self.vocab, torch.float32)
            if self._bias is not None:
                self._bias.add(table)
            for ids in suppressed:
                table[ids.cpu()] = -math.inf
            self._addends = len(suppressed), table.to(device)
        return self._addends[1]

    def _remember(self, token: int) -> None:
        self._count += 1
        if self._temperature:
            (self._uniforms or self._draw_uniforms()).pop()
        if self._seen is not None:
            self._seen.add(token)
        if self._constraint is not None and token not in self._end_ids:
            self._constraint.accept(token)


class _Bias:
    """What is added to some logits."""

    def __init__(self, biases: Mapping[int, float], vocab: int) -> None:
        ids = sorted(biases)
        if ids[0] < 0 or ids[-1] >= vocab:
            raise InvalidRequest(
                f"logit_bias holds ids from {ids[0]} to {ids[-1]}; they must be in the vocabulary, 0 to {vocab - 1}"
            )
        self._ids = torch.tensor(ids)
        self._values = torch.tensor([biases[number] for number in ids], dtype=torch.float32)

    def add(self, scores: Tensor) -> None:
        """In place; what is used is from now on kept on the device of ``scores``."""
        self._ids, self._values = self._ids.to(scores.device), self._values.to(scores.device)
        scores[self._ids] += self._values


def _peak(scores: Tensor) -> float:
    """The largest; NaN if any is."""
    return float(scores.numpy().max() if scores.device.type == "cpu" else scores.max())  # numpy: as in _argmax


def _argmax(scores: Tensor) -> int:
    # numpy's is ten times as fast on one thread, and wakes none of torch's, which would spin on beside the kernels'.
    token = int(scores.numpy().argmax()) if scores.device.type == "cpu" else int(scores.argmax())
    _require_finite(float(scores[token]))  # NaN counts as the largest, so one look finds any
    return token


def _require_finite(peak: float) -> None:
    """Refuse logits whose maximum is ``peak`` if they define no distribution."""
    if peak == -math.inf:
        raise InvalidRequest(
            "no token can be sampled: suppress_tokens, logit_bias, min_tokens and the grammar together leave none (or "
            "the model's own logits are all -inf: check the weights with --check-tensors); allow more tokens"
        )
    if not math.isfinite(peak):
        raise NumericalError(
            f"the model's logits hold {'NaN' if math.isnan(peak) else '+inf'}, so no token can be sampled; "
            "check the weights with --check-tensors, or compute in float32 (--dtype f32)"
        )


def _at_least_rank(scores: Tensor, rank: int) -> Tensor:
    """Ids, ascending, of the ``rank`` largest scores and of all that tie with the smallest of these."""
    ids = _at_least_bound(scores, rank) if scores.device.type == "cpu" else None
    values = scores if ids is None else scores[ids]
    chosen = (values >= torch.topk(values, rank).values[-1]).nonzero().flatten()
    return chosen if ids is None else ids[chosen]


def _at_least_bound(scores: Tensor, rank: int) -> Tensor | None:
    """Ids, ascending, among which the ``rank`` largest scores and all their ties are; None: all.

    The rank-th largest of the maxima of chunks is at most the rank-th largest score. So whatever is as large as that
    lies in a chunk whose maximum is as large as the former."""
    chunks = _CHUNKS_A_RANK * rank
    width = len(scores) // chunks
    if width < _LEAST_WIDTH:
        return None
    whole = chunks * width
    maxima = scores[:whole].view(chunks, width).amax(1)
    kept = (maxima >= torch.topk(maxima, rank).values[-1]).nonzero()
    return torch.cat(((kept * width + torch.arange(width)).flatten(), torch.arange(whole, len(scores))))


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


def with_logprobs(raw: Tensor, token: int, alternatives: int) -> SampledToken:
    """``token`` with its log-probability and those of the ``alternatives`` most likely ones, of float32 logits
    ``[vocab]``. NumericalError: they hold NaN or +inf."""
    logits = raw.cpu()
    norm = float(logits.double().logsumexp(0))
    _require_finite(norm)
    top: tuple[tuple[int, float], ...] = ()
    if alternatives:
        ids = _at_least_rank(logits, min(alternatives, len(logits)))
        values, order = torch.sort(logits[ids], descending=True, stable=True)
        pairs = zip(ids[order[:alternatives]].tolist(), values[:alternatives].tolist(), strict=True)
        top = tuple((i, value - norm) for i, value in pairs)
    return SampledToken(token, float(logits[token]) - norm, top)


def _known(ids: Iterable[int], vocab: int) -> list[int]:
    """The distinct ids, ascending, those past the vocabulary left out."""
    distinct = sorted(set(ids))
    if distinct and distinct[0] < 0:
        raise InvalidRequest(f"token ids must not be negative; got {distinct[0]}")
    return [i for i in distinct if i < vocab]


def _suppressed(ids: frozenset[int], vocab: int) -> Tensor:
    if min(ids) < 0 or max(ids) >= vocab:
        raise InvalidRequest(
            f"suppress_tokens holds ids from {min(ids)} to {max(ids)}; they must be in the vocabulary, 0 to {vocab - 1}"
        )
    if len(ids) == vocab:
        raise InvalidRequest(
            f"suppress_tokens holds all {vocab} tokens, those that logit_bias has at -{MAX_BIAS} among them; leave at "
            "least one to choose"
        )
    return torch.tensor(sorted(ids))


def _resolved(value: float | None) -> float:
    assert value is not None, "with_defaults leaves no None here"
    return value
