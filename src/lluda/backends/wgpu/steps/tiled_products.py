"""Products of many rows, written down as launches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from torch import Tensor

from lluda.backends.wgpu.gpu import Buffer
from lluda.backends.wgpu.memory.matrices import Matrices, Matrix, Part
from lluda.backends.wgpu.steps.launch import LateRange, Range, whole
from lluda.backends.wgpu.wgsl import rows as row_kernels
from lluda.backends.wgpu.wgsl import tiled
from lluda.backends.wgpu.wgsl.shader import Shader
from lluda.backends.wgpu.wgsl.tiled import Ending, Experts, Rows, Source, Tiled

AddLaunch = Callable[[Shader, Sequence[Range | LateRange], tuple[int, int, int]], None]
"""Takes a kernel, what it is given, and its workgroups."""

BytesOf = Callable[[str, int], Buffer]
"""Memory of that name and size, for what is used up at once."""

LAUNCHES_AT_ONCE = 64
"""Of many rows in one submission, which must not keep a GPU busy for long: some systems reset one after two seconds."""

_FEW = 2 * tiled.SMALL
"""Rows up to which tiles are small: a large one would be mostly empty."""


def padded_rows(rows: int) -> int:
    """Rows that x and y have: what fills up the last tile is computed too."""
    tile = tiled.SMALL if rows <= _FEW else tiled.LARGE
    return -(-rows // tile) * tile


@dataclass(frozen=True, slots=True)
class Plan:
    """What `grouping.group` writes of pairs of a row and one of its ``top_k`` of ``experts``, in ``tiles`` tiles."""

    buffer: Buffer
    experts: int
    top_k: int
    tiles: int
    small: bool


class TiledProducts:
    """A packed matrix is decoded before each product, into memory that all share; packed experts by the product, which
    reads those that were chosen."""

    def __init__(self, matrices: Matrices, launch: AddLaunch, bytes_of: BytesOf) -> None:
        self._matrices, self._launch, self._bytes_of = matrices, launch, bytes_of

    def add(
        self,
        matrix: Matrix,
        x: Buffer,
        y: Buffer,
        rows: int,
        width: int,
        *,
        columns: Sequence[int] = (0,),
        above: int = 0,
        source: Source | None = None,
        ending: Ending | None = None,
        bias: Sequence[Tensor] = (),
        scale: Tensor | None = None,
        given: int | None = None,
    ) -> None:
        """``rows`` rows of x times the matrix, whose members' results begin at ``columns`` of y, ``width`` wide and
        ``above`` rows down. ``bias``: of the matrices that the only member joins; it and ``scale`` are the ending's.
        ``given``: columns of x where the matrix is filled up."""
        ending = replace(ending or Ending(), bias=bool(bias), scaled=scale is not None)
        beside = [whole(self._matrices.vectors(*bias))] if bias else []
        beside += [whole(self._matrices.vectors(scale))] if scale is not None else []
        small = rows <= _FEW
        form = "bf16" if matrix.form == "packed" else matrix.form
        for part in matrix.parts:
            body = self._body(matrix, part, len(columns))
            side = [whole(part.side)] if part.side and form != "bf16" else []
            for member, column in enumerate(columns):
                kernel = Tiled(
                    part.rows, matrix.columns, width, column + part.first, above, member, len(columns), form, small,
                    source=source or Rows(), ending=ending, given=given,
                )  # fmt: skip
                ranges = [body, whole(x), whole(y), *side, *beside]
                self._launch(_product(kernel), ranges, kernel.grid(-(-rows // kernel.tile)))

    def add_experts(
        self,
        matrix: Matrix,
        x: Buffer,
        y: Buffer,
        plan: Plan,
        width: int,
        *,
        columns: Sequence[int] = (0,),
        of_rows: bool,
    ) -> None:
        """The same of the plan's pairs of a row and an expert; ``of_rows``: x is of rows, else of pairs."""
        experts = Experts(plan.experts, plan.top_k, of_rows)
        for part in matrix.parts:
            for member, column in enumerate(columns):
                kernel = Tiled(
                    part.rows, matrix.columns, width, column + part.first, 0, member, len(columns), matrix.form,
                    plan.small, experts=experts,
                )  # fmt: skip
                ranges = [(part.body, 0, part.nbytes), whole(x), whole(y)]
                ranges += [whole(part.side)] if part.side else []
                self._launch(_product(kernel), [*ranges, whole(plan.buffer)], kernel.grid(plan.tiles))

    def _body(self, matrix: Matrix, part: Part, members: int) -> Range:
        """The part as the product reads it."""
        if matrix.form != "packed":
            return part.body, 0, part.nbytes
        assert part.side is not None, "a packed matrix has a side"
        shader, grid = row_kernels.decoded(members * part.rows, matrix.columns)
        nbytes = 2 * members * part.rows * matrix.columns
        plain = self._bytes_of("decoded", nbytes)
        self._launch(shader, [(part.body, 0, part.nbytes), whole(plain), whole(part.side)], grid)
        return plain, 0, nbytes


@lru_cache(maxsize=256)
def _product(kernel: Tiled) -> Shader:
    return tiled.product(kernel)
