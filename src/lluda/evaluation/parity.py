"""How far two traces of the same ids lie apart, stage by stage, and how far each lies from the float64 truth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lluda.errors import LludaError
from lluda.evaluation.trace import Continuation, Trace

_BLOCK = 64  # positions compared at once: logits in float64 are 1.2 MB each at 152k vocabulary


@dataclass(frozen=True, slots=True)
class DistanceToTruth:
    """The mean over positions (and channels) of the absolute distance to the float64 truth. The mean absolute and not
    the root mean square, so that the few large channels a trained residual stream has do not decide alone."""

    lluda: float
    reference: float

    @property
    def ratio(self) -> float | None:
        """Below one, lluda is nearer to the truth. None where the reference is exact."""
        return self.lluda / self.reference if self.reference else None


@dataclass(frozen=True, slots=True)
class StageParity:
    """One stage of lluda and the reference. Errors are absolute differences over all positions; ``value_range`` is the
    reference's largest value less its smallest, ``mean_abs_value`` the mean of its absolute values;
    ``argmax_agreement`` is the share of positions whose largest value stands at the same index (for logits: the same
    greedy token); ``first_divergence`` the first position whose error exceeds the tolerance, as a share of the
    reference's range at that position."""

    stage: str
    max_abs_error: float
    mean_abs_error: float
    value_range: float
    mean_abs_value: float
    argmax_agreement: float
    first_divergence: int | None
    error_to_float64: DistanceToTruth | None

    @property
    def relative_error(self) -> float:
        """``max_abs_error`` as a share of ``value_range``."""
        return self.max_abs_error / self.value_range if self.value_range else self.max_abs_error


@dataclass(frozen=True, slots=True)
class GreedyParity:
    """Greedy tokens (or codes) of both after the same prompt. ``agreement`` is the share of tokens before the first
    difference, since after it the two continue different texts. ``first_divergence`` is that token's index; the margins
    there say by how much each preferred its own choice."""

    tokens: int
    first_divergence: int | None
    lluda_token: int | None = None
    reference_token: int | None = None
    lluda_margin: float | None = None
    reference_margin: float | None = None

    @property
    def agreement(self) -> float:
        """One where all are equal."""
        return 1.0 if self.first_divergence is None else self.first_divergence / self.tokens


def compare_traces(lluda: Trace, reference: Trace, truth: Trace | None, tolerance: float) -> tuple[StageParity, ...]:
    """Every stage, in the order of computation. ``tolerance``: see ``StageParity.first_divergence``.

    Raises:
        LludaError: the traces have other stages, shapes or NaN and infinity in them; the first such place is named.
    """
    _require_comparable(reference, lluda, *((truth,) if truth else ()))
    stages = []
    for stage in reference.stages:
        exact = truth.stages[stage] if truth else None
        stages.append(_compare(stage, lluda.stages[stage], reference.stages[stage], exact, tolerance))
    return tuple(stages)


def compare_greedy(lluda: Continuation, reference: Continuation) -> GreedyParity:
    """Token by token, up to the first that differs."""
    count = len(reference.tokens)
    assert len(lluda.tokens) == count, "both continue for the same number of tokens"
    for index, (ours, theirs) in enumerate(zip(lluda.tokens, reference.tokens, strict=True)):
        if ours != theirs:
            margins = [run.margins[index] if run.margins else None for run in (lluda, reference)]
            return GreedyParity(count, index, ours, theirs, *margins)
    return GreedyParity(count, None)


def _compare(stage: str, lluda: Tensor, reference: Tensor, truth: Tensor | None, tolerance: float) -> StageParity:
    largest = total = size = to_truth_lluda = to_truth_reference = 0.0
    agreeing = 0
    divergence: int | None = None
    for rows in _blocks(reference.shape[0]):
        ours, theirs = lluda[rows].double(), reference[rows].double()
        error = (ours - theirs).abs()
        worst = error.amax(-1)
        largest = max(largest, float(worst.max()))
        total += float(error.sum())
        size += float(theirs.abs().sum())
        agreeing += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        beyond = (worst > tolerance * (theirs.amax(-1) - theirs.amin(-1))).nonzero()
        if divergence is None and len(beyond):
            divergence = rows.start + int(beyond[0])
        if truth is not None:
            exact = truth[rows].double()
            to_truth_lluda += float((ours - exact).abs().sum())
            to_truth_reference += float((theirs - exact).abs().sum())
    low, high = torch.aminmax(reference)
    count = reference.numel()
    return StageParity(
        stage=stage,
        max_abs_error=largest,
        mean_abs_error=total / count,
        value_range=float(high) - float(low),
        mean_abs_value=size / count,
        argmax_agreement=agreeing / reference.shape[0],
        first_divergence=divergence,
        error_to_float64=DistanceToTruth(to_truth_lluda / count, to_truth_reference / count)
        if truth is not None
        else None,
    )


def _require_comparable(*traces: Trace) -> None:
    """The same stages and shapes, and numbers in all of them: NaN would compare as no error."""
    first = traces[0]
    for trace in traces:
        shapes = {stage: tuple(rows.shape) for stage, rows in trace.stages.items()}
        if shapes != {stage: tuple(rows.shape) for stage, rows in first.stages.items()}:
            raise LludaError(
                f"{trace.implementation} does not have the stages and widths that {first.implementation} has"
            )
        for stage, rows in trace.stages.items():
            bad = (~torch.isfinite(rows).all(-1)).nonzero()
            if len(bad):
                raise LludaError(
                    f"{trace.implementation} has NaN or infinity in stage {stage} at position {int(bad[0])}, so there "
                    "is nothing to compare; look at the weights with --check-tensors"
                )


def _blocks(count: int) -> Iterator[slice]:
    for start in range(0, count, _BLOCK):
        yield slice(start, min(start + _BLOCK, count))
