"""A decoder stack between rows of the host: the talker's steps, and the passes of the code predictor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lluda.backends.batch import RowsElsewhere, Segment
from lluda.backends.blocks import Norm
from lluda.backends.components import DecoderLayers
from lluda.backends.executor.operations import RotaryTable
from lluda.backends.weight import Weight
from lluda.backends.wgpu.gpu import Buffer, Gpu
from lluda.backends.wgpu.steps.between_layers import BetweenLayers
from lluda.backends.wgpu.steps.exchange import Exchange, Place
from lluda.backends.wgpu.steps.launch import Launch
from lluda.backends.wgpu.steps.step import StepBuilder

STACK_ROWS = (1, 2, 4, 8, 16, 32, 64)
"""Sequences that a stack is made for; a step of fewer is filled up."""


@dataclass(frozen=True, slots=True)
class Ending:
    """What comes behind the layers, and what the host reads of it: float ``[rows, width]``. ``number`` is its own."""

    number: int
    launches: tuple[Launch, ...]
    source: Buffer
    target: Buffer
    width: int


class WgpuStack:
    """Up to ``rows`` rows of ``hidden`` columns: one of each sequence, or where the builder's are a prompt's, any.
    NoKernel: there is none for the layers."""

    def __init__(self, gpu: Gpu, builder: StepBuilder, layers: DecoderLayers, rows: int, hidden: int) -> None:
        self._gpu, self._builder, self._rows = gpu, builder, rows
        self._x = builder.add_layers(layers, builder.given_rows(hidden), remote=True)
        self._step = builder.finished()
        self._exchange = Exchange(gpu, self._step)
        heads = self._step.layers.heads
        self._padding = _Padding(len(self._step.layers.ends), heads.kv_heads, heads.head_dim)
        self._endings = [Ending(0, (), self._step.x, gpu.buffer(self._step.x.nbytes, readable=True), hidden)]

    def add_head(self, norm: Norm, weight: Weight) -> Ending:
        """Logits behind the layers."""
        logits = self._builder.add_logits(self._x, norm, weight)
        launches = tuple(self._builder.take_launches())
        same = [each.target for each in self._endings if each.source is logits]
        target = same[0] if same else self._gpu.buffer(logits.nbytes, readable=True)
        self._endings.append(Ending(len(self._endings), launches, logits, target, weight.out_features))
        return self._endings[-1]

    @property
    def rows(self) -> int:
        """Of one step."""
        return self._rows

    def place(self, segments: Sequence[Segment]) -> None:
        """Make room for all rows of ``segments``."""
        with self._gpu.lock:
            self._step.layers.pool.place([each.store for each in segments], [each.rows for each in segments])

    def run(
        self,
        x: Tensor,
        table: RotaryTable,
        places: Sequence[Place],
        ending: Ending | None = None,
        between: BetweenLayers | None = None,
        first: int = 0,
    ) -> Tensor:
        """Rows ``[n, hidden]`` at ``places`` and the angles ``table`` -> what the ending gives, or the rows after all
        layers: float ``[n, width]``. The places' stores are not advanced. ``between`` takes a submission each time;
        ``first``: of how many rows come before these."""
        ending = ending or self._endings[0]
        missing = self._rows - len(x)
        cos, sin = (torch.cat((part, part[-1:].expand(missing, -1))) for part in table)
        filled, begin = [*places, *[Place(self._padding, 0)] * missing], 0
        with self._gpu.lock:
            self._write(x)
            for layer in between.layers if between else ():
                end = self._step.layers.ends[layer]
                rows = self._part(filled, (cos, sin), begin, end, self._endings[0], len(x))
                assert between is not None, "layers come from it"
                if between.change(layer, rows, first):
                    self._write(rows)
                begin = end
            return self._part(filled, (cos, sin), begin, None, ending, len(x))

    def _write(self, x: Tensor) -> None:
        self._gpu.write(self._step.x, 0, x.float().contiguous().numpy())

    def _part(
        self, places: Sequence[Place], table: RotaryTable, begin: int, end: int | None, ending: Ending, count: int
    ) -> Tensor:
        """Run the step's launches from ``begin`` to ``end``, None with those of the ending; what that gives of the
        first ``count`` rows."""
        launches = self._step.launches[begin:end] + ([] if end else list(ending.launches))
        copies = [(ending.source, ending.target, ending.source.nbytes)]
        most = self._builder.launches_at_once or max(1, len(launches))
        for first in range(0, len(launches) - most, most):
            some, way = launches[first : first + most], (begin, end, ending.number, first)
            self._exchange.start(places, table, some, [], way=way)
        last = launches[(len(launches) - 1) // most * most :] if launches else []
        submission = self._exchange.start(places, table, last, copies, way=(begin, end, ending.number))
        raw = self._gpu.read(ending.target, 4 * count * ending.width, submission)
        return torch.from_numpy(raw.view(np.float32)).view(count, ending.width)


def run_prompt(
    stacks: Sequence[WgpuStack], x: Tensor, table: RotaryTable, segments: Sequence[Segment], between: BetweenLayers
) -> Tensor:
    """Rows of ``segments``, several of each, in one step of each of ``stacks``, whose layers are the same."""
    # All at once, so that nothing is moved between the steps: the stores do not know yet what they hold.
    stacks[0].place(segments)
    places = [Place(each.store, each.store.length + row) for each in segments for row in range(each.rows)]
    parts, begin = [], 0
    for stack in stacks:
        part = slice(begin, begin + stack.rows)
        rows = stack.run(x[part], (table[0][part], table[1][part]), places[part], between=between, first=begin)
        parts.append(rows)
        begin += stack.rows
    return torch.cat(parts)


class _Padding:
    """Where the rows that fill up a step write."""

    length = 0
    elsewhere: RowsElsewhere | None = None

    def __init__(self, layers: int, kv_heads: int, head_dim: int) -> None:
        self._memory = torch.zeros(layers, kv_heads, 1, head_dim, dtype=torch.bfloat16)

    def reserve(self, rows: int) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """The same memory for all ``rows``."""
        return self._memory, self._memory
