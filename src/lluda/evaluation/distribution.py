"""How alike the next-token distributions of two runs are."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import cosine_similarity

_BLOCK = 64


@dataclass(frozen=True, slots=True)
class DistributionParity:
    """Over positions: the mean and largest Kullback-Leibler divergence KL(reference || lluda) in nats, and the mean
    Pearson correlation of the logits of a position (0 where one has no spread)."""

    mean_kl: float
    max_kl: float
    correlation: float


def compare_distributions(lluda: Tensor, reference: Tensor) -> DistributionParity:
    """Logits ``[positions, vocab_size]`` of both, in any dtype; computed in float64."""
    total = largest = correlation = 0.0
    for start in range(0, reference.shape[0], _BLOCK):
        ours, theirs = (logits[start : start + _BLOCK].double() for logits in (lluda, reference))
        ours_log, theirs_log = ours.log_softmax(-1), theirs.log_softmax(-1)
        divergence = (theirs_log.exp() * (theirs_log - ours_log)).sum(-1)
        total += float(divergence.sum())
        largest = max(largest, float(divergence.max()))
        ours, theirs = (logits - logits.mean(-1, keepdim=True) for logits in (ours, theirs))
        correlation += float(cosine_similarity(ours, theirs, dim=-1).sum())
    return DistributionParity(total / reference.shape[0], largest, correlation / reference.shape[0])
