"""Many rows through a decoder stack: products by tiles, and rows of one sequence that see each other."""

from __future__ import annotations

from collections.abc import Sequence

from lluda.backends.blocks import MixtureBlock, Norm, SwiGLUBlock
from lluda.backends.wgpu.gpu import Buffer
from lluda.backends.wgpu.memory.matrices import Matrix, Part
from lluda.backends.wgpu.steps.launch import LateRange, Range
from lluda.backends.wgpu.steps.step import StepBuilder, whole
from lluda.backends.wgpu.weight import NoKernel
from lluda.backends.wgpu.wgsl import attention, rows, tiled
from lluda.backends.wgpu.wgsl.attention import Heads
from lluda.backends.wgpu.wgsl.gemv import Mode

PROMPT_ROWS = 2 * tiled.TILE
"""Rows of one step; a prompt's last are filled up. More would make no product faster, and one submission must not keep
a GPU busy for long: some systems reset it."""


class PromptBuilder(StepBuilder):
    """Matrices in other forms than BF16 are decoded before each product, into memory that all share."""

    def _attend(self, heads: Heads, ranges: Sequence[Range | LateRange]) -> None:
        self._launch(attention.store(heads, self._gpu.target), ranges, (heads.kv_heads, 1, self._rows))
        shader = attention.attention(heads, self._gpu.target, stored=True)
        self._launch(shader, ranges, (heads.kv_heads, heads.splits, self._rows))

    def _swiglu(self, block: SwiGLUBlock, hidden: int) -> None:
        if block.scale is not None:
            raise NoKernel("a block whose result is scaled")
        x, inner = self._rows_of("x", hidden), block.mlp.gate_proj.out_features
        both, acts = self._rows_of("gate_up", 2 * inner), self._rows_of("acts", inner)
        paired = self._matrices.matrix((((block.mlp.gate_proj,), (block.mlp.up_proj,)),))
        normed = self._normed(x, block.norm, hidden)
        for part in paired.parts:
            body = self._plain(paired, part, members=2)
            for member in range(2):
                shader, grid = tiled.product(
                    part.rows, hidden, 2 * inner, member * inner + part.first, self._rows, "store", member * part.rows
                )
                self._launch(shader, [body, whole(normed), whole(both)], grid)
        shader, grid = rows.gated(inner, self._rows)
        self._launch(shader, [whole(both), whole(acts)], grid)
        self._product(self._matrices.matrix((((block.mlp.down_proj,),),)), acts, x, hidden, mode="add")

    def _mixture(self, block: MixtureBlock, hidden: int) -> None:  # noqa: ARG002
        raise NoKernel("prompts through experts")

    def _product(
        self,
        matrix: Matrix,
        x: Buffer,
        y: Buffer,
        width: int,
        *,
        norm: Norm | None = None,
        mode: Mode = "store",
        choice: Buffer | None = None,
        top_k: int = 0,
    ) -> None:
        assert mode in ("store", "add") and choice is None and not top_k, f"mode {mode} of a prompt"
        x = self._normed(x, norm, matrix.columns) if norm else x
        for part in matrix.parts:
            body = self._plain(matrix, part)
            shader, grid = tiled.product(
                part.rows, matrix.columns, width, part.first, self._rows, "store" if mode == "store" else "add"
            )
            self._launch(shader, [body, whole(x), whole(y)], grid)

    def _normed(self, x: Buffer, norm: Norm, columns: int) -> Buffer:
        normed = self._rows_of("normed", columns)
        ranges = [whole(x), whole(self._matrices.vectors(norm.weight)), whole(normed)]
        self._launch(rows.normed(columns, norm.eps, self._gpu.target), ranges, (self._rows, 1, 1))
        return normed

    def _plain(self, matrix: Matrix, part: Part, members: int = 1) -> Range:
        """The part as BF16."""
        if matrix.form == "bf16":
            return part.body, 0, part.nbytes
        assert part.side is not None, f"a {matrix.form} matrix has a side"
        shader, grid = rows.decoded(matrix.form, members * part.rows, matrix.columns)
        nbytes = 2 * members * part.rows * matrix.columns
        plain = self._bytes_of("decoded", nbytes)
        self._launch(shader, [(part.body, 0, part.nbytes), whole(plain), whole(part.side)], grid)
        return plain, 0, nbytes
