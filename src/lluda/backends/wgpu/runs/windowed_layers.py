"""Code2wav's transformer as launches: rows of one stream, each of which sees those of a window before it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lluda.backends.blocks import AttentionBlock, MixtureBlock, Projection, SwiGLUBlock
from lluda.backends.components import DecoderLayers
from lluda.backends.wgpu.gpu import Buffer
from lluda.backends.wgpu.runs.row_run import RowRun, row_grid
from lluda.backends.wgpu.runs.stream import Past
from lluda.backends.wgpu.steps.launch import whole
from lluda.backends.wgpu.weight import NoKernel
from lluda.backends.wgpu.wgsl import block_attention
from lluda.backends.wgpu.wgsl import rows as row_kernels


class WindowedLayers:
    """Adds the layers' launches for ``frames`` rows, which stand in ``x``. NoKernel: there is none for them."""

    def __init__(self, run: RowRun, layers: DecoderLayers, x: Buffer, hidden: int, frames: int) -> None:
        self._run, self._x, self._frames = run, x, frames
        heads, self._head_dim, self._window = _attention_of(layers)
        self.turn, self.bounds = run.floats("turn", self._head_dim), run.floats("bounds", 2)
        self.pasts: list[Past] = []
        for index, (attention, feed_forward) in enumerate(layers.blocks):
            if isinstance(feed_forward, MixtureBlock):
                raise NoKernel("code2wav with experts")
            self._attention(index, attention, heads)
            self._swiglu(feed_forward)
            run.stop(f"layers.{index}", x, frames, hidden)

    def bounds_of(self, before: int) -> NDArray[np.uint32]:
        """Of each row first row and end of what it sees, where ``before`` frames of the stream came before; rows that
        fill up see themselves."""
        above = self._window - 1
        row = np.arange(self._run.rows) + above
        first = np.maximum(row - above, above - min(before, above))
        first[self._frames :] = row[self._frames :]
        return np.stack((first, row + 1), axis=1).astype(np.uint32)

    def _attention(self, index: int, block: AttentionBlock, heads: int) -> None:
        run, above, width = self._run, self._window - 1, heads * self._head_dim
        qkv = run.floats(f"qkv.{index}", 3 * width, rows=above + run.rows)
        attended = run.floats("attended", width)
        projections = (block.q_proj, block.k_proj, block.v_proj)
        matrix = run.matrices.matrix(((tuple(each.weight for each in projections),),))
        normed = run.rms_norm(self._x, block.norm)
        run.products.add(matrix, normed, qkv, run.rows, 3 * width, above=above)
        turning = block_attention.rotated(heads, self._head_dim, above)
        run.launch(turning, [whole(qkv), whole(self.turn)], row_grid(run.rows))
        shader = block_attention.attention(heads, self._head_dim, above)
        grid = heads, run.rows // block_attention.QUERIES, 1
        run.launch(shader, [whole(qkv), whole(self.bounds), whole(attended)], grid)
        run.project(attended, block.o_proj, self._x, add=True, scale=block.scale)
        self.pasts.append(Past(qkv, above, 3 * width, self._frames, above))

    def _swiglu(self, block: SwiGLUBlock) -> None:
        run, mlp = self._run, block.mlp
        inner = mlp.gate_proj.out_features
        both, acts = run.floats("gate_up", 2 * inner), run.floats("acts", inner)
        paired = run.matrices.matrix((((mlp.gate_proj,), (mlp.up_proj,)),))
        normed = run.rms_norm(self._x, block.norm)
        run.products.add(paired, normed, both, run.rows, 2 * inner, columns=(0, inner))
        shader, grid = row_kernels.gated(inner, run.rows)
        run.launch(shader, [whole(both), whole(acts)], grid)
        run.project(acts, Projection(mlp.down_proj), self._x, add=True, scale=block.scale)


def _attention_of(layers: DecoderLayers) -> tuple[int, int, int]:
    """Heads, their width and the window, the same in all layers."""
    found = {_shape_of(block) for block, _ in layers.blocks}
    if len(found) != 1:
        raise NoKernel("layers of code2wav that differ")
    return found.pop()


def _shape_of(block: AttentionBlock) -> tuple[int, int, int]:
    parts = block.q_proj, block.k_proj, block.v_proj
    heads = {part.weight.out_features // block.head_dim for part in parts}
    plain = block.q_norm is None and block.k_norm is None and all(part.bias is None for part in parts)
    if len(heads) != 1 or not plain or block.window is None or not block_attention.takes(block.head_dim):
        raise NoKernel("code2wav with norms, biases, heads or a window of another kind")
    return heads.pop(), block.head_dim, block.window
