"""The audio encoder's convolutions as launches."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from lluda.backends.blocks import Projection
from lluda.backends.components import ConvStem
from lluda.backends.weight import DenseWeight
from lluda.backends.wgpu.runs.row_run import RowRun, RunMemory
from lluda.backends.wgpu.steps.tiled_products import padded_rows
from lluda.backends.wgpu.weight import NoKernel
from lluda.backends.wgpu.wgsl.tiled import Columns, Squares

_CHANNELS = 8
"""Of the chunks, of which one is used: a product's columns come in eights."""


class StemMatrices:
    """A stem's kernels as matrices of the values around an output, where pictures lie ``[height, width, channels]``.
    NoKernel: its channels are not a multiple of eight."""

    def __init__(self, stem: ConvStem) -> None:
        self.stem = stem
        self.convolutions = [Projection(_by_channel(kernel), bias) for kernel, bias in stem.convolutions]
        channels = stem.convolutions[-1][0].shape[0]
        if any(kernel.shape[0] % 8 for kernel, _ in stem.convolutions):
            raise NoKernel(f"a convolution to {channels} channels")


class StemRun:
    """Of ``count`` chunks ``[bins, frames]``."""

    def __init__(self, memory: RunMemory, stem: StemMatrices, count: int, bins: int, frames: int) -> None:
        self._stem, self._count = stem.stem, count
        self._run = run = RowRun(memory, count)
        steps = [Squares(bins, frames, _CHANNELS)]
        for convolution in stem.convolutions:
            steps.append(Squares(*steps[-1].shape, convolution.weight.out_features))
        last, conv_out = Columns(steps[-1].height, steps[-1].width, steps[-1].channels), stem.stem.conv_out
        x = self._chunks = run.memory("pictures.0", _floats(steps[0], count))
        for index, (convolution, source, after) in enumerate(zip(stem.convolutions, steps, steps[1:], strict=False)):
            y = run.memory(f"pictures.{index + 1}", _floats(after, count))
            rows = count * after.height * after.width
            run.project(x, convolution, y, rows=rows, source=source, activation="gelu", rounded=True)
            x = y
        rows, width = count * last.width, conv_out.weight.out_features
        out = run.floats("stem", width, rows=padded_rows(rows))
        run.project(x, conv_out, out, rows=rows, source=last)
        self._steps = last.width
        run.result(out, rows, width)

    def __call__(self, chunks: Tensor) -> Tensor:
        """``chunks [count, 1, bins, frames]`` -> float ``[count * steps, hidden]``, with their positions."""
        pictures = F.pad(chunks.bfloat16().float().permute(0, 2, 3, 1), (0, _CHANNELS - 1))
        rows = self._run.run([(self._chunks, pictures)])[0]
        positions = self._stem.positions[: self._steps].float()
        return (rows.view(self._count, self._steps, -1) + positions).flatten(0, 1)


def _floats(pictures: Squares, count: int) -> int:
    """Of ``count`` pictures, and of those that fill up the last tile of what is made of them."""
    (height, width), made = pictures.shape, 0
    for cells in (height * width, pictures.width, pictures.height * pictures.width):  # products of, columns, made by
        made = max(made, -(-padded_rows(count * cells) // cells))
    return made * pictures.height * pictures.width * pictures.channels


def _by_channel(kernel: Tensor) -> DenseWeight:
    """``[out, in, 3, 3]`` -> ``[out, 9 * in]``, channels innermost, the first's filled up."""
    filled = F.pad(kernel.permute(0, 2, 3, 1), (0, -kernel.shape[1] % _CHANNELS))
    return DenseWeight(filled.flatten(1).contiguous(), "BF16")
