"""The rows of prompts as captured launches: one for each of a few numbers of rows, behind any start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lluda.backends.batch import Segment
from lluda.backends.capture import STORE_WIDTH, PromptStore
from lluda.backends.components import Observer
from lluda.backends.cuda.graph import Graph, Layers

BUCKETS = (8, 16, 32, 48, *range(64, 256, 32), *range(256, 512, 64), *range(512, 1024, 128), *range(1024, 2049, 256))
"""Rows of a captured launch; fewer are filled up. More keep a GPU busy launch by launch."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What rows of a stack are: how wide, in which dtype, with how many numbers for a position (0: one, without an axis
    of its own), and the dtype of the keys and values that they leave."""

    hidden: int
    dtype: torch.dtype
    axes: int
    cache: torch.dtype


class PromptGraphs:
    """All ``layers`` of a stack over the next rows of one sequence. A launch is captured when its bucket is first met.

    What fills up one of ``buckets`` repeats the last row, so that no other experts are read for it, and is not stored.
    ``stage``: of which the rows can be shown to an observer, "" for none; ``pool``: memory shared with other graphs of
    which none runs meanwhile; without ``capture`` launches go out one by one.
    """

    def __init__(
        self, layers: Layers, kind: Rows, stage: str, device: torch.device, *, capture: bool, pool: Any = None,
        buckets: Sequence[int] = BUCKETS,
    ) -> None:  # fmt: skip
        self._layers, self._stage, self._device, self._capture, self._pool = layers, stage, device, capture, pool
        self._buckets = buckets
        self._rows = torch.zeros(buckets[-1], kind.hidden, dtype=kind.dtype, device=device)
        self._kept = torch.zeros_like(self._rows if stage else self._rows[:0])
        shape = (kind.axes, buckets[-1]) if kind.axes else (buckets[-1],)
        self._positions = torch.zeros(shape, dtype=torch.float32, device=device)
        self._table = torch.zeros(1, STORE_WIDTH + 1, dtype=torch.int64, device=device)
        self._store = PromptStore(self._table, 0, kind.cache)
        self._graphs: dict[int, Graph] = {}

    @property
    def warm_up_seconds(self) -> float:
        """Seconds that compiling and capturing took so far."""
        return sum(graph.warm_up_seconds for graph in self._graphs.values())

    def __call__(self, x: Tensor, positions: Tensor, place: Sequence[int], observe: Observer | None) -> Tensor:
        """Residual rows ``[n, hidden]`` at ``positions [n]`` or ``[axes, n]``, stored at ``place`` (`store_row`) -> the
        same after all layers."""
        count = len(x)
        bucket = next(rows for rows in self._buckets if rows >= count)
        self._table[0].copy_(torch.tensor([*place, count]), non_blocking=True)
        self._rows[:count] = x
        self._positions[..., :count] = positions
        if bucket > count:
            self._rows[count:bucket] = x[-1]
            self._positions[..., count:bucket] = positions[..., -1:]
        if bucket not in self._graphs:
            state = (self._rows[:bucket],)
            self._graphs[bucket] = Graph(
                lambda: self._body(bucket), self._device, capture=self._capture, state=state, pool=self._pool
            )
        self._graphs[bucket].launch()
        if observe is not None and self._stage:
            observe(self._stage, self._kept[:count])
        return self._rows[:count].clone()

    def _body(self, bucket: int) -> None:
        rows = self._rows[:bucket]
        out = self._layers(
            rows, self._positions[..., :bucket], [Segment(0, bucket, self._store)],
            self._keep if self._stage else None,
        )  # fmt: skip
        if out.data_ptr() != rows.data_ptr():
            rows.copy_(out)

    def _keep(self, stage: str, rows: Tensor) -> None:
        if stage == self._stage:
            self._kept[: len(rows)] = rows
