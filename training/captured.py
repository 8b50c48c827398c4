"""Whole steps of training as CUDA graphs: thousands of small kernels without Python between them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

Values = dict[str, Tensor]
"""What a step reports, by name."""

_WARM_UP = 3
"""Steps of a kind that run as they are before it is captured: kernels are chosen and optimisers get their state."""


class CapturedSteps:
    """Runs ``step(kind, *inputs)``, which changes weights and returns values to report. On a GPU each kind of step
    (shapes, and whatever else decides which kernels run) is captured after a few runs and replayed from then on. A step
    must not read a value from the GPU, nor bring any there but its inputs."""

    def __init__(self, step: Callable[..., Values], active: bool) -> None:
        self._step, self._active = step, active
        self._runs: dict[Hashable, int] = {}
        self._graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, list[Tensor], Values]] = {}

    def __call__(self, kind: Hashable, *inputs: Tensor) -> Values:
        """One step; the values change with the next step of the kind."""
        if not self._active:
            return self._step(kind, *inputs)
        self._runs[kind] = self._runs.get(kind, 0) + 1
        if self._runs[kind] <= _WARM_UP:
            return self._beside(kind, inputs)
        if kind not in self._graphs:
            self._graphs[kind] = self._captured(kind, inputs)
        graph, places, values = self._graphs[kind]
        for place, one in zip(places, inputs, strict=True):
            place.copy_(one)
        graph.replay()
        return values

    def _beside(self, kind: Hashable, inputs: Sequence[Tensor]) -> Values:
        """Run on another stream, as captures are."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            values = self._step(kind, *inputs)
        torch.cuda.current_stream().wait_stream(stream)
        return values

    def _captured(self, kind: Hashable, inputs: Sequence[Tensor]) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Values]:
        places, graph = [one.clone() for one in inputs], torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            values = self._step(kind, *places)
        return graph, places, values
