"""Products by themselves, between rows of the host: a projection, two with an activation between, a merger."""

from __future__ import annotations

from torch import Tensor

from lluda.backends.blocks import Projection
from lluda.backends.components import Merger
from lluda.backends.wgpu.gpu import Buffer
from lluda.backends.wgpu.runs.row_run import RowRun, RunMemory
from lluda.backends.wgpu.wgsl.activations import Activation

Pair = tuple[Projection, Projection]


class ProjectionRun:
    """``rows`` rows, whose values are BF16, times a matrix."""

    def __init__(self, memory: RunMemory, projection: Projection, rows: int) -> None:
        self._run = run = RowRun(memory, rows)
        self._x = run.floats("x", projection.weight.in_features)
        width = projection.weight.out_features
        out = run.floats("out", width)
        run.project(self._x, projection, out)
        run.result(out, rows, width)

    def __call__(self, x: Tensor) -> Tensor:
        """Up to so many rows ``[n, in]`` -> float ``[n, out]``."""
        return self._run.run([(self._x, x)])[0][: len(x)]


class PairRun:
    """``outer(activation(inner(x)))`` of ``rows`` rows, whose values are BF16."""

    def __init__(self, memory: RunMemory, pair: Pair, activation: Activation, rows: int) -> None:
        self._run = run = RowRun(memory, rows)
        self._x = run.floats("x", pair[0].weight.in_features)
        _add_pair(run, pair, activation, self._x, rows, "out")

    def __call__(self, x: Tensor) -> Tensor:
        """Up to so many rows ``[n, in]`` -> float ``[n, out]``."""
        return self._run.run([(self._x, x)])[0][: len(x)]


class MergerRun:
    """See Merger, of ``tokens`` rows that it makes."""

    def __init__(self, memory: RunMemory, merger: Merger, tokens: int) -> None:
        self._run = run = RowRun(memory, tokens)
        self._x = run.floats("x", merger.inner.weight.in_features)
        add_merger(run, merger, self._x, tokens, "out")

    def __call__(self, x: Tensor) -> Tensor:
        """Rows of up to so many tokens -> float ``[tokens, width]``."""
        return self._run.run([(self._x, x)])[0]


def add_merger(run: RowRun, merger: Merger, x: Buffer, tokens: int, name: str) -> None:
    """See Merger, of the rows of so many tokens (whole tiles); a result of the run, in the memory called ``name``."""
    rows = tokens * merger.inner.weight.in_features // len(merger.norm.weight)
    _add_pair(run, (merger.inner, merger.outer), "gelu", run.layer_norm(x, merger.norm, rows=rows), tokens, name)


def _add_pair(run: RowRun, pair: Pair, activation: Activation, x: Buffer, rows: int, name: str) -> None:
    inner, outer = pair
    width = outer.weight.out_features
    acts = run.floats("inner", inner.weight.out_features, rows=rows)
    out = run.floats(name, width, rows=rows)
    run.project(x, inner, acts, rows=rows, activation=activation, rounded=True)
    run.project(acts, outer, out, rows=rows)
    run.result(out, rows, width)
