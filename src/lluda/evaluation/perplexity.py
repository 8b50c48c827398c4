"""How well a model predicts a text, and how far its predictions are from another's, as llama.cpp's perplexity tool
defines both (tools/perplexity, "perplexity" and "--kl-divergence").

The text's ids are cut into chunks of ``context``, what is left over is dropped, and each chunk is run from an empty
cache. Of a chunk the predictions of its second half count: of the ids from ``context / 2 + 1`` on, each of which has at
least half a context before it. Where the model's texts begin with a token, that token takes the place of a chunk's
first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lluda.errors import InvalidRequest
from lluda.evaluation.trace import Implementation

DEFAULT_CONTEXT = 512
"""Ids of a chunk: llama.cpp's default."""

_LOGITS_AT_ONCE = 1 << 24  # compared at a time: 128 MB in float64 for each model

Progress = Callable[[int, int], None]
"""Called with chunks done and chunks in all."""


@dataclass(frozen=True, slots=True)
class Perplexity:
    """``value`` = exp(mean negative log-likelihood) over ``tokens`` predictions in ``chunks`` chunks; ``error`` is its
    standard error."""

    value: float
    error: float
    tokens: int
    chunks: int


@dataclass(frozen=True, slots=True)
class Divergence:
    """Kullback-Leibler divergence KL(base || model) in nats of each prediction: mean with its standard error, median,
    99th percentile and largest; and the share of predictions with the same token of highest logit, with its error."""

    mean: float
    mean_error: float
    median: float
    percentile_99: float
    largest: float
    same_top: float
    same_top_error: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one model made of a text: its perplexity after each chunk is ``running``, negative log-likelihoods in nats
    of every prediction are ``losses``."""

    name: str
    perplexity: Perplexity
    running: tuple[float, ...]
    losses: Tensor


@dataclass(frozen=True, slots=True)
class Comparison:
    """A model's predictions and, where there is one to compare with, the base's, the divergence of each prediction and
    what it comes to."""

    context: int
    model: Prediction
    base: Prediction | None = None
    divergence: Divergence | None = None
    divergences: Tensor | None = None

    def document(self) -> dict[str, Any]:
        """JSON values."""
        found: dict[str, Any] = {"context": self.context, "model": _document(self.model)}
        if self.base and self.divergence:
            found |= {"base": _document(self.base), "ratio": self.model.perplexity.value / self.base.perplexity.value}
            found["divergence"] = {name: getattr(self.divergence, name) for name in Divergence.__dataclass_fields__}
        return found


def text_chunks(ids: Sequence[int], context: int, first: int | None, limit: int | None = None) -> list[list[int]]:
    """The chunks of a text's ids, ``limit`` of them at most; ``first`` is the token that texts begin with.

    InvalidRequest: a context below 4, or a text of less than two chunks, as in llama.cpp's tool.
    """
    if context < 4:
        raise InvalidRequest(f"a context of {context} is too short to predict in; take at least 4")
    if limit is not None and limit < 1:
        raise InvalidRequest(f"--chunks must be at least 1, not {limit}")
    count = len(ids) // context
    if len(ids) < 2 * context:
        raise InvalidRequest(
            f"the text has {len(ids)} tokens; at least {2 * context} are needed with a context of {context}: "
            "give a longer text, or a smaller --context"
        )
    chunks = [list(ids[index * context : (index + 1) * context]) for index in range(min(count, limit or count))]
    for chunk in chunks if first is not None else ():
        chunk[0] = int(first or 0)
    return chunks


@torch.inference_mode()
def compare_predictions(
    model: Implementation,
    chunks: Sequence[Sequence[int]],
    base: Implementation | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Run ``chunks`` (of one length) through ``model`` and, side by side, ``base``."""
    context = len(chunks[0])
    losses: tuple[list[Tensor], list[Tensor]] = ([], [])
    divergences: list[Tensor] = []
    same = 0
    for done, chunk in enumerate(chunks, 1):
        runs = [_predictions(one, chunk) for one in (model, base) if one is not None]
        for parts in zip(*runs, strict=True):
            targets = parts[0][0]
            logs = [logits.double().log_softmax(-1) for _, logits in parts]
            for found_losses, log in zip(losses, logs, strict=False):
                found_losses.append(-log.gather(1, targets[:, None]).flatten())
            if base is not None:
                ours, theirs = logs
                divergences.append((theirs.exp() * (theirs - ours)).sum(-1))
                same += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        if progress:
            progress(done, len(chunks))
    found = _prediction(model, losses[0], len(chunks))
    if base is None:
        return Comparison(context, found)
    every = torch.cat(divergences)
    return Comparison(context, found, _prediction(base, losses[1], len(chunks)), _divergence(every, same), every)


def _predictions(model: Implementation, chunk: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """The ids to predict and the logits for them, of the second half of a chunk, some rows at a time."""
    step, context = model.start(), len(chunk)
    first = context // 2
    rows = max(1, _LOGITS_AT_ONCE // step(chunk[:first]).shape[1])
    for start in range(first, context - 1, rows):
        end = min(start + rows, context - 1)
        logits = step(chunk[start:end]).cpu()
        yield torch.tensor(list(chunk[start + 1 : end + 1])), logits


def _prediction(model: Implementation, parts: Sequence[Tensor], chunks: int) -> Prediction:
    losses = torch.cat(list(parts))
    by_chunk = losses.view(chunks, -1).mean(1)
    running = (by_chunk.cumsum(0) / torch.arange(1, chunks + 1)).exp()
    return Prediction(model.name, _perplexity(losses, chunks), tuple(running.tolist()), losses)


def _perplexity(losses: Tensor, chunks: int) -> Perplexity:
    count = len(losses)
    mean = float(losses.mean())
    variance = float(losses.square().mean()) - mean * mean
    value = math.exp(mean)
    error = math.sqrt(max(variance, 0.0) / (count - 1)) * value if count > 1 else math.nan
    return Perplexity(value, error, count, chunks)


def _divergence(every: Tensor, same: int) -> Divergence:
    count = len(every)
    mean = float(every.mean())
    variance = max(float(every.square().mean()) - mean * mean, 0.0)
    median, percentile_99 = torch.quantile(every, torch.tensor([0.5, 0.99], dtype=every.dtype)).tolist()
    top = same / count
    return Divergence(
        mean=mean,
        mean_error=math.sqrt(variance / max(count - 1, 1)),
        median=median,
        percentile_99=percentile_99,
        largest=float(every.max()),
        same_top=top,
        same_top_error=math.sqrt(top * (1 - top) / max(count - 1, 1)),
    )


def _document(prediction: Prediction) -> dict[str, Any]:
    found = prediction.perplexity
    return {
        "name": prediction.name,
        "perplexity": found.value,
        "error": found.error,
        "tokens": found.tokens,
        "chunks": found.chunks,
    }
