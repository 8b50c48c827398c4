"""Products one behind the other and nothing else, in one submission: how fast the device multiplies."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lluda.backends.weight import Weight
from lluda.backends.wgpu.gpu import Buffer, Gpu
from lluda.backends.wgpu.memory.matrices import Matrices, Matrix
from lluda.backends.wgpu.steps.launch import Commands, LateRange, Launch, Range, whole
from lluda.backends.wgpu.steps.tiled_products import TiledProducts, padded_rows
from lluda.backends.wgpu.wgsl.gemv import Product, gemv, tile_of
from lluda.backends.wgpu.wgsl.shader import Shader


class ProductRun:
    """Of float ``rows [n, in_features]`` with each of ``weights``, of one shape: one row as steps multiply it, more as
    prompts are. What a call computes is of no interest. NoKernel: a weight there is none for."""

    def __init__(self, gpu: Gpu, matrices: Matrices, rows: Tensor, weights: Sequence[Weight]) -> None:
        self._gpu, self._launches, self._held = gpu, list[Launch](), dict[str, Buffer]()
        count, width = len(rows), weights[0].out_features
        padded = 1 if count == 1 else padded_rows(count)
        x, y = gpu.buffer(4 * padded * weights[0].in_features), gpu.buffer(4 * padded * width)
        gpu.write(x, 0, rows.float().contiguous().numpy())
        tiles = TiledProducts(matrices, self._launch, self._memory)
        for weight in weights:
            matrix = matrices.matrix((((weight,),),))
            if count == 1:
                self._add_row(matrix, x, y, width)
            else:
                tiles.add(matrix, x, y, padded, width)
        self._commands = Commands(gpu, self._launches)

    def __call__(self) -> None:
        """Start them."""
        with self._gpu.lock:
            self._gpu.submit(self._commands.recorded())

    def _add_row(self, matrix: Matrix, x: Buffer, y: Buffer, width: int) -> None:
        for part in matrix.parts:
            product = Product(matrix.form, part.rows, matrix.columns, width, part.first)
            shader, grid = gemv(product, tile_of(product, self._gpu.target), self._gpu.target)
            ranges = [(part.body, 0, part.nbytes), whole(x), whole(y), *([whole(part.side)] if part.side else [])]
            self._launch(shader, ranges, (*grid, 1))

    def _launch(self, shader: Shader, ranges: Sequence[Range | LateRange], grid: tuple[int, int, int]) -> None:
        self._launches.append(Launch(shader, tuple(ranges), grid))

    def _memory(self, name: str, nbytes: int) -> Buffer:
        if name not in self._held:
            self._held[name] = self._gpu.buffer(nbytes)
        return self._held[name]
