"""What one implementation computes, stage by stage, and the tokens it chooses greedily.

lluda and its references are driven by the same two functions, so that they see the same ids in the same steps.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lluda.engine.loading.tokenizer import return_freed_memory

Observe = Callable[[str, Tensor], None]
Stages = dict[str, Tensor]
Step = Callable[[Sequence[int]], Tensor]
"""Runs further ids of one sequence (its cache holds those before); returns logits ``[len(ids), vocab_size]``."""


class Implementation(Protocol):
    """A loaded model whose stages can be observed. ``name`` is for the report."""

    name: str

    def start(self, observe: Observe | None = None) -> Step:
        """Begin a sequence with an empty cache. ``observe`` is called in each step with every stage's name and rows
        ``[rows, width]``."""


@dataclass(frozen=True, slots=True)
class Trace:
    """One run. ``stages``, in the order they are computed (of a decoder ``embeddings``, ``layers.0`` …, which is the
    residual stream after each block, ``norm``, ``logits``): each ``[positions, width]`` on the CPU, in the dtype the
    implementation has it in."""

    implementation: str
    stages: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Continuation:
    """Greedily chosen ``tokens`` (or codes) and, for each, by how much its logit led the second best; no ``margins``
    where they are not known."""

    tokens: tuple[int, ...]
    margins: tuple[float, ...] = ()


class Recorder:
    """An observer that copies every stage; what comes in parts is put below each other."""

    def __init__(self) -> None:
        self._parts: dict[str, list[Tensor]] = {}

    def __call__(self, stage: str, rows: Tensor) -> None:
        """See ``Observe``."""
        # A copy: what an implementation does later with its tensor must not reach the trace.
        self._parts.setdefault(stage, []).append(rows.detach().to("cpu", copy=True))

    @property
    def stages(self) -> Stages:
        """All rows of each stage."""
        return {stage: parts[0] if len(parts) == 1 else torch.cat(parts) for stage, parts in self._parts.items()}


def release_memory() -> None:
    """Give the memory of what nothing refers to any more back to the system, before the next side is loaded: glibc
    keeps tensors of a few megabytes, of which a mixture of experts is made, and two models would not fit."""
    gc.collect()
    return_freed_memory()


def trace(implementation: Implementation, ids: Sequence[int], rows_per_step: int) -> Trace:
    """Run ``ids`` through an empty cache, ``rows_per_step`` at a time: ``len(ids)`` is one prefill, 1 is token by
    token."""
    observe = Recorder()
    step = implementation.start(observe)
    for start in range(0, len(ids), rows_per_step):
        step(ids[start : start + rows_per_step])
    stages = observe.stages
    assert all(len(rows) == len(ids) for rows in stages.values()), "a stage was not observed once in each step"
    return Trace(implementation.name, stages)


def continue_greedily(implementation: Implementation, prompt: Sequence[int], count: int) -> Continuation:
    """The ``count`` tokens of highest logit (of equals the lowest id) after ``prompt``; no token ends it."""
    step = implementation.start()
    tokens: list[int] = []
    margins: list[float] = []
    pending: Sequence[int] = prompt
    for _ in range(count):
        logits = step(pending)[-1].double()
        best, second = logits.topk(2).values.tolist()
        tokens.append(int(logits.argmax()))
        margins.append(best - second)
        pending = tokens[-1:]
    return Continuation(tuple(tokens), tuple(margins))
