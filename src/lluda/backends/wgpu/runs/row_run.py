"""Launches between rows that the host gives and rows that it gets: encoders and code2wav."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lluda.backends.blocks import LayerNorm, Norm, Projection
from lluda.backends.components import Observer
from lluda.backends.wgpu.gpu import Buffer, Gpu
from lluda.backends.wgpu.memory.matrices import Matrices
from lluda.backends.wgpu.steps.launch import Commands, Copy, LateRange, Launch, Range, whole
from lluda.backends.wgpu.steps.tiled_products import LAUNCHES_AT_ONCE, TiledProducts, padded_rows
from lluda.backends.wgpu.weight import NoKernel
from lluda.backends.wgpu.wgsl import rows as row_kernels
from lluda.backends.wgpu.wgsl.activations import Activation
from lluda.backends.wgpu.wgsl.shader import Shader
from lluda.backends.wgpu.wgsl.tiled import Ending, Source

Made = TypeVar("Made")
Given = tuple[Buffer, Tensor | NDArray[np.uint32]]
"""Where the host writes, and what."""

_SHAPES = 64
"""Kept, the last that were used: each has bindings, and memory for its results."""

_MANY_ROWS = 256
"""From so many on launches are submitted some at a time."""


class RunMemory:
    """The device and what lies there: a model's matrices, and memory by name, which runs of all shapes share, since
    what is in it is used up inside one submission."""

    def __init__(self, gpu: Gpu, matrices: Matrices) -> None:
        self.gpu, self.matrices = gpu, matrices
        self._held: dict[str, Buffer] = {}

    def floats(self, name: str, count: int) -> Buffer:
        """So many floats at least. NoKernel: more than a kernel can be given."""
        nbytes = 4 * count
        if nbytes > self.gpu.binding_limit:
            raise NoKernel(f"rows that take {nbytes:,} bytes at once")
        held = self._held.get(name)
        if held is None or held.nbytes < nbytes:
            self._held[name] = held = self.gpu.buffer(nbytes)
        return held


class Shapes(Generic[Made]):
    """What was made for the last shapes that came."""

    def __init__(self) -> None:
        self._made: OrderedDict[Hashable, Made] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """That of ``key``, which ``make`` makes."""
        if key not in self._made:
            self._made[key] = make()
            if len(self._made) > _SHAPES:
                self._made.popitem(last=False)
        self._made.move_to_end(key)
        return self._made[key]


class RowRun:
    """Up to ``rows`` rows, filled up to whole tiles. Launches are added, then it is run any number of times."""

    def __init__(self, memory: RunMemory, rows: int) -> None:
        self.gpu, self.matrices, self._memory = memory.gpu, memory.matrices, memory
        self.rows = padded_rows(rows)
        self._launches: list[Launch] = []
        self._results: list[tuple[Buffer, Buffer, tuple[int, int]]] = []
        self._stops: list[tuple[int, str, Buffer, tuple[int, int]]] = []
        self._commands: list[Commands] = []
        self.products = TiledProducts(memory.matrices, self.launch, lambda name, nbytes: self.memory(name, nbytes // 4))

    def floats(self, name: str, width: int, *, rows: int | None = None) -> Buffer:
        """Float ``[rows, width]`` of that name."""
        return self._memory.floats(name, width * (self.rows if rows is None else rows))

    def memory(self, name: str, count: int) -> Buffer:
        """So many floats of that name."""
        return self._memory.floats(name, count)

    def launch(self, shader: Shader, ranges: Sequence[Range | LateRange], grid: tuple[int, int, int]) -> None:
        """Add a kernel."""
        self._launches.append(Launch(shader, tuple(ranges), grid))

    def project(
        self,
        x: Buffer,
        projection: Projection,
        y: Buffer,
        *,
        rows: int | None = None,
        above: int = 0,
        source: Source | None = None,
        activation: Activation | None = None,
        rounded: bool = False,
        add: bool = False,
        scale: Tensor | None = None,
    ) -> None:
        """``y = activation(x @ weight.T + bias)``; ``add``: ``y += scale * …``."""
        weight = projection.weight
        ending = Ending("add" if add else "store", activation=activation, rounded=rounded)
        bias = [] if projection.bias is None else [projection.bias]
        matrix = self.matrices.matrix((((self.matrices.widened(weight),),),))
        given = weight.in_features if weight.in_features < matrix.columns else None
        self.products.add(
            matrix, x, y, self.rows if rows is None else rows, weight.out_features,
            above=above, source=source, ending=ending, bias=bias, scale=scale, given=given,
        )  # fmt: skip

    def layer_norm(self, x: Buffer, norm: LayerNorm, *, rows: int | None = None) -> Buffer:
        """Rows of the norm's width, rounded."""
        width, count = len(norm.weight), self.rows if rows is None else rows
        normed = self.floats("normed", width, rows=count)
        ranges = [whole(x), whole(self.matrices.vectors(norm.weight, norm.bias)), whole(normed)]
        self.launch(row_kernels.layer_normed(width, norm.eps, self.gpu.target), ranges, row_grid(count))
        return normed

    def rms_norm(self, x: Buffer, norm: Norm, *, rows: int | None = None) -> Buffer:
        """The same of RMSNorm."""
        width, count = len(norm.weight), self.rows if rows is None else rows
        normed = self.floats("normed", width, rows=count)
        ranges = [whole(x), whole(self.matrices.vectors(norm.weight)), whole(normed)]
        self.launch(row_kernels.normed(width, norm.eps, self.gpu.target), ranges, row_grid(count))
        return normed

    def result(self, source: Buffer, rows: int, width: int) -> None:
        """What the host gets beside what it gets already."""
        target = self.gpu.buffer(4 * rows * width, readable=True)
        self._results.append((source, target, (rows, width)))

    def stop(self, name: str, source: Buffer, rows: int, width: int) -> None:
        """Here an observer is told the ``rows`` in ``source``."""
        self._stops.append((len(self._launches), name, source, (rows, width)))

    def run(self, given: Sequence[Given], observe: Observer | None = None) -> list[Tensor]:
        """Write what is ``given``, run, and read the results: float ``[rows, width]`` each. An observer takes a
        submission for each stop."""
        with self.gpu.lock:
            for buffer, data in given:
                self.gpu.write(buffer, 0, _numbers(data))
            *before, last = self._commands_from(0 if observe is None else self._observed(observe))
            for commands in before:
                self.gpu.submit(commands.recorded())
            copies: list[Copy] = [(source, target, 4 * n * width) for source, target, (n, width) in self._results]
            self.gpu.submit(last.recorded(copies))
            return [self._read(target, shape) for _, target, shape in self._results]

    def _observed(self, observe: Observer) -> int:
        """Run up to the last stop, which launch that is before."""
        begin = 0
        for end, name, source, shape in self._stops:
            self.gpu.submit(Commands(self.gpu, self._launches[begin:end]).recorded())
            numbers = self.gpu.download(source, 4 * shape[0] * shape[1]).view(np.float32)
            observe(name, torch.from_numpy(numbers.copy()).view(shape))
            begin = end
        return begin

    def _commands_from(self, begin: int) -> list[Commands]:
        """Of many rows several, so that none takes long."""
        if self._commands and not begin:
            return self._commands
        end = len(self._launches)
        most = LAUNCHES_AT_ONCE if self.rows >= _MANY_ROWS else max(end, 1)
        made = [
            Commands(self.gpu, self._launches[first : first + most])
            for first in range(begin, max(end, begin + 1), most)
        ]
        if not begin:
            self._commands = made
        return made

    def _read(self, target: Buffer, shape: tuple[int, int]) -> Tensor:
        raw = self.gpu.read(target, 4 * shape[0] * shape[1])
        return torch.from_numpy(raw.view(np.float32).copy()).view(shape)


def row_grid(rows: int) -> tuple[int, int, int]:
    """A workgroup for each row. NoKernel: more than a grid takes."""
    if rows > 65535:
        raise NoKernel(f"{rows} rows at once")
    return rows, 1, 1


def _numbers(data: Tensor | NDArray[np.uint32]) -> NDArray[np.generic]:
    return data.float().contiguous().numpy() if isinstance(data, Tensor) else data
