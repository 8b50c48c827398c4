"""The code predictor's passes: layers and head on the device, codes chosen and looked up on the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lluda.backends.batch import KeyValueStore
from lluda.backends.components import CodePredictorSteps
from lluda.backends.executor.operations import RotaryTable
from lluda.backends.weight import Weight
from lluda.backends.wgpu.steps.exchange import next_places
from lluda.backends.wgpu.steps.stack import WgpuStack

Lookup = Callable[[Weight, Tensor], Tensor]


class CodePasses:
    """``look_up`` gives rows of a table on the host."""

    def __init__(self, stack: WgpuStack, passes: CodePredictorSteps, look_up: Lookup) -> None:
        self._stack, self._tables, self._look_up = stack, passes.embeddings, look_up
        self._heads = [stack.add_head(passes.norm, head) for head in passes.heads]

    def __call__(
        self,
        x: Tensor,
        angles: RotaryTable,
        stores: Sequence[KeyValueStore],
        choose: Sequence[Callable[[Tensor], int]],
        total: Tensor,
    ) -> list[list[int]]:
        """See `ComputeBackend.predict_codes`; ``angles`` of all positions of a frame."""
        codes: list[list[int]] = [[] for _ in stores]
        # The first pass has two rows of each sequence; of the first only its keys and values are wanted.
        self._stack.run(x[:, 0], _of_position(angles, 0, len(x)), next_places(stores))
        _advance(stores)
        rows = x[:, 1]
        for place, (head, table) in enumerate(zip(self._heads, self._tables, strict=True), start=1):
            logits = self._stack.run(rows, _of_position(angles, place, len(x)), next_places(stores), head)
            _advance(stores)
            for chosen, pick, row in zip(codes, choose, logits, strict=True):
                chosen.append(pick(row))
            rows = self._look_up(table, torch.tensor([chosen[-1] for chosen in codes]))
            total += rows
        return codes


def _of_position(angles: RotaryTable, place: int, rows: int) -> RotaryTable:
    cos, sin = (part[place : place + 1].expand(rows, -1) for part in angles)
    return cos, sin


def _advance(stores: Sequence[KeyValueStore]) -> None:
    for store in stores:
        store.length += 1
