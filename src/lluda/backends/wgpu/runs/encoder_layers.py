"""A stack of encoder layers, and what goes before and after it, as launches."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lluda.backends.blocks import EncoderBlock, Projection
from lluda.backends.components import EncoderLayers, Observer
from lluda.backends.executor.operations import RotaryTable
from lluda.backends.wgpu.gpu import Buffer
from lluda.backends.wgpu.runs.products import add_merger
from lluda.backends.wgpu.runs.row_run import Given, RowRun, RunMemory, row_grid
from lluda.backends.wgpu.steps.launch import whole
from lluda.backends.wgpu.steps.tiled_products import padded_rows
from lluda.backends.wgpu.weight import NoKernel
from lluda.backends.wgpu.wgsl import block_attention
from lluda.backends.wgpu.wgsl.activations import Activation
from lluda.backends.wgpu.wgsl.tiled import Ending


class EncoderRun:
    """All ``layers`` for up to ``rows`` rows, whole tiles, whatever blocks they are in. NoKernel: there is none for
    them."""

    def __init__(self, memory: RunMemory, layers: EncoderLayers, rows: int) -> None:
        self._run = run = RowRun(memory, rows)
        self._hidden, self._mergers = len(layers.blocks[0].norm1.weight), layers.deepstack
        heads, head_dim = _heads_of(layers)
        grouped = max((merger.inner.weight.in_features for merger in layers.deepstack.values()), default=1)
        # Mergers fill up their tokens: they may read behind the rows.
        self._x = run.memory("x", max(rows * self._hidden, padded_rows(rows * self._hidden // grouped) * grouped))
        self._bounds = run.floats("bounds", 2)
        self._turn = run.floats("turn", head_dim) if layers.rotary is not None else None
        for index, block in enumerate(layers.blocks):
            self._block(block, heads, head_dim)
            run.stop(f"layers.{index}", self._x, rows, self._hidden)
            if index in layers.deepstack:
                merger = layers.deepstack[index]
                tokens = padded_rows(rows * self._hidden // merger.inner.weight.in_features)
                add_merger(run, merger, self._x, tokens, f"deep.{index}")
        run.result(self._x, rows, self._hidden)

    def __call__(
        self, x: Tensor, lengths: Sequence[int], table: RotaryTable | None, observe: Observer | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Rows ``[n, hidden]`` -> the same, and what each of the layers' ``deepstack`` made of them."""
        given: list[Given] = [(self._x, x), (self._bounds, _bounds_of(lengths, self._run.rows))]
        if self._turn is not None:
            assert table is not None, "an encoder with rotary positions is told them"
            given.append((self._turn, torch.cat(table, dim=1)))

        def tell(stage: str, rows: Tensor) -> None:
            if observe:
                observe(stage, rows[: len(x)])

        *deep, out = self._run.run(given, tell if observe else None)
        tokens = [x.numel() // merger.inner.weight.in_features for merger in self._mergers.values()]
        return out[: len(x)], [rows[:count] for rows, count in zip(deep, tokens, strict=True)]

    def _block(self, block: EncoderBlock, heads: int, head_dim: int) -> None:
        run, hidden, inner = self._run, self._hidden, block.fc1.weight.out_features
        qkv, attended = run.floats("qkv", 3 * hidden), run.floats("attended", hidden)
        self._queries(run.layer_norm(self._x, block.norm1), block.qkv, qkv)
        if self._turn is not None:
            turning = block_attention.rotated(heads, head_dim)
            run.launch(turning, [whole(qkv), whole(self._turn)], row_grid(run.rows))
        shader = block_attention.attention(heads, head_dim)
        grid = heads, run.rows // block_attention.QUERIES, 1
        run.launch(shader, [whole(qkv), whole(self._bounds), whole(attended)], grid)
        run.project(attended, block.out, self._x, add=True)
        acts = run.floats("inner", inner)
        activation: Activation = "gelu_tanh" if block.tanh else "gelu"
        normed = run.layer_norm(self._x, block.norm2)
        run.project(normed, block.fc1, acts, activation=activation, rounded=True)
        run.project(acts, block.fc2, self._x, add=True)

    def _queries(self, normed: Buffer, projections: Sequence[Projection], qkv: Buffer) -> None:
        """Queries, keys and values side by side; rounded here where they are not turned before."""
        run = self._run
        biases = [each.bias for each in projections if each.bias is not None]
        if len(biases) not in (0, len(projections)):
            raise NoKernel("queries, keys and values of which some have biases")
        matrix = run.matrices.matrix(((tuple(each.weight for each in projections),),))
        ending = Ending(rounded=self._turn is None)
        run.products.add(matrix, normed, qkv, run.rows, 3 * self._hidden, ending=ending, bias=biases)


def _bounds_of(lengths: Sequence[int], rows: int) -> NDArray[np.uint32]:
    """Of each row first row and end of its block; those that fill up are blocks of their own."""
    ends = list(accumulate(lengths))
    bounds = np.empty((rows, 2), np.uint32)
    for length, end in zip(lengths, ends, strict=True):
        bounds[end - length : end] = end - length, end
    filling = np.arange(ends[-1], rows)
    bounds[ends[-1] :, 0], bounds[ends[-1] :, 1] = filling, filling + 1
    return bounds


def _heads_of(layers: EncoderLayers) -> tuple[int, int]:
    """Heads and their width, the same in all layers."""
    found = {(block.heads, len(block.norm1.weight) // block.heads) for block in layers.blocks}
    if len(found) != 1:
        raise NoKernel("encoder layers with different heads")
    heads, head_dim = found.pop()
    if not block_attention.takes(head_dim):
        raise NoKernel(f"an encoder's heads of {head_dim} columns")
    return heads, head_dim
