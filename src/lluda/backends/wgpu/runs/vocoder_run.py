"""Frames of one stream of code2wav to samples, as launches of one submission."""

from __future__ import annotations

import torch
from torch import Tensor

from lluda.backends.blocks import ResidualUnit
from lluda.backends.components import (
    CausalConvolution,
    ConvNeXtBlock,
    MonoConvolution,
    Observer,
    TransposedConvolution,
    Vocoder,
)
from lluda.backends.executor.operations import RotaryTable
from lluda.backends.wgpu.gpu import Buffer
from lluda.backends.wgpu.runs.row_run import Given, RowRun, RunMemory, row_grid
from lluda.backends.wgpu.runs.stream import Past, Stream
from lluda.backends.wgpu.runs.windowed_layers import WindowedLayers
from lluda.backends.wgpu.steps.launch import whole
from lluda.backends.wgpu.steps.tiled_products import padded_rows
from lluda.backends.wgpu.weight import NoKernel
from lluda.backends.wgpu.wgsl import convolution
from lluda.backends.wgpu.wgsl.tiled import Windows


class VocoderRun:
    """``frames`` frames; ``first``: of a stream that had none before. NoKernel: there is none for the vocoder."""

    def __init__(self, memory: RunMemory, vocoder: Vocoder, frames: int, *, first: bool) -> None:
        self._run = run = RowRun(memory, frames)
        self._first, self._turn = first, 0
        self._pasts: list[Past] = []
        hidden = len(vocoder.norm.weight)
        self._x = run.floats("x", hidden)
        run.stop("embeddings", self._x, frames, hidden)
        self._layers = WindowedLayers(run, vocoder.layers, self._x, hidden, frames)
        self._pasts += self._layers.pasts
        x, rows, width = run.rms_norm(self._x, vocoder.norm), frames, hidden
        run.stop("pre_transformer", x, rows, width)
        for index, (widen, convnext) in enumerate(vocoder.widen):
            joined = self._placed(x, rows, width, widen.taps - 1, padded=False)
            x, rows, width = self._transposed(joined, rows, width, widen)
            self._convnext(x, rows, width, convnext)
            run.stop(f"upsample.{index}", x, rows, width)
        x, width = self._causal(x, rows, width, vocoder.first)
        run.stop("decoder.0", x, rows, width)
        for index, block in enumerate(vocoder.blocks, start=1):
            joined = self._snaked(x, rows, width, block.act, block.upsample.taps - 1, padded=False)
            x, rows, width = self._transposed(joined, rows, width, block.upsample)
            for unit in block.units:
                self._residual(x, rows, width, unit)
            run.stop(f"decoder.{index}", x, rows, width)
        joined = self._snaked(x, rows, width, vocoder.act, vocoder.last.weight.shape[1] - 1, padded=True)
        self._mono(joined, rows, width, vocoder.last)

    def new_stream(self) -> Stream:
        """Nothing of it has come."""
        return Stream(self._run.gpu, self._pasts)

    def __call__(self, x: Tensor, table: RotaryTable, before: int, stream: Stream, observe: Observer | None) -> Tensor:
        """The frames' rows ``[frames, hidden]`` with their angles, of a stream that had ``before`` of them -> float
        ``[samples]``."""
        with self._run.gpu.lock:
            stream.load(self._pasts)
            layers = self._layers
            given: list[Given] = [(self._x, x), (layers.turn, torch.cat(table, dim=1))]
            samples = self._run.run([*given, (layers.bounds, layers.bounds_of(before))], observe)[0]
            stream.keep(self._pasts)
        return samples.flatten()

    def _placed(self, x: Buffer, rows: int, width: int, context: int, *, padded: bool, to_bf16: bool = True) -> Buffer:
        """x below its past."""
        joined, above = self._joined(rows, width, context, padded=padded)
        shader, grid = convolution.placed(width, above, rows, to_bf16=to_bf16)
        self._run.launch(shader, [(x, 0, 4 * rows * width), whole(joined)], grid)
        return joined

    def _snaked(
        self, x: Buffer, rows: int, width: int, act: tuple[Tensor, Tensor], context: int, *, padded: bool
    ) -> Buffer:
        """SnakeBeta of x below its past."""
        joined, above = self._joined(rows, width, context, padded=padded)
        self._snake(x, joined, rows, width, act, above)
        return joined

    def _snake(self, x: Buffer, y: Buffer, rows: int, width: int, act: tuple[Tensor, Tensor], above: int) -> None:
        shader, grid = convolution.snake(width, above, rows)
        ranges = [(x, 0, 4 * rows * width), whole(y), whole(self._run.matrices.vectors(*act))]
        self._run.launch(shader, ranges, grid)

    def _joined(self, rows: int, width: int, context: int, *, padded: bool) -> tuple[Buffer, int]:
        """Memory for ``context`` rows of the past and the new ones below, and how many of the past there are. Where
        they are not ``padded``, a stream begins without."""
        if context == 0:
            return self._run.floats("joined", width, rows=padded_rows(rows)), 0
        above = context if padded or not self._first else 0
        if above + rows <= context:
            raise NoKernel("code2wav's first frames where they give no samples")
        joined = self._run.floats(f"past.{len(self._pasts)}", width, rows=context + padded_rows(rows))
        self._pasts.append(Past(joined, context, width, rows, above))
        return joined, above

    def _transposed(
        self, joined: Buffer, rows: int, width: int, conv: TransposedConvolution
    ) -> tuple[Buffer, int, int]:
        """Its rows, how many, and their width."""
        windows = rows - (conv.taps - 1 if self._first else 0)
        made, out = windows * conv.stride, conv.projection.weight.out_features // conv.stride
        y = self._rows_of(max(padded_rows(windows) * conv.stride, padded_rows(made)), out)
        self._run.project(joined, conv.projection, y, rows=windows, source=Windows(width))
        return y, made, out

    def _causal(self, x: Buffer, rows: int, width: int, conv: CausalConvolution) -> tuple[Buffer, int]:
        joined = self._placed(x, rows, width, (conv.taps - 1) * conv.dilation, padded=True)
        out = conv.projection.weight.out_features
        y = self._rows_of(padded_rows(rows), out)
        self._run.project(joined, conv.projection, y, rows=rows, source=Windows(width, conv.dilation))
        return y, out

    def _convnext(self, x: Buffer, rows: int, width: int, block: ConvNeXtBlock) -> None:
        run, taps = self._run, len(block.dwconv.weight)
        joined = self._placed(x, rows, width, taps - 1, padded=True, to_bf16=False)
        normed = run.floats("normed", width, rows=padded_rows(rows))
        acts = run.floats("inner", block.pwconv1.weight.out_features, rows=padded_rows(rows))
        kernel = run.matrices.vectors(block.dwconv.bias, block.dwconv.weight)
        norm = run.matrices.vectors(block.norm.weight, block.norm.bias)
        shader = convolution.depthwise_normed(width, taps, block.norm.eps, run.gpu.target)
        run.launch(shader, [whole(joined), whole(kernel), whole(norm), whole(normed)], row_grid(rows))
        run.project(normed, block.pwconv1, acts, rows=rows, activation="gelu", rounded=True)
        run.project(acts, block.pwconv2, x, rows=rows, add=True, scale=block.gamma)

    def _residual(self, x: Buffer, rows: int, width: int, unit: ResidualUnit) -> None:
        run = self._run
        joined = self._snaked(x, rows, width, unit.act1, unit.context, padded=True)
        inner, snaked = (run.floats(name, width, rows=padded_rows(rows)) for name in ("inner", "joined"))
        run.project(joined, unit.conv1, inner, rows=rows, source=Windows(width, unit.dilation))
        self._snake(inner, snaked, rows, width, unit.act2, 0)
        run.project(snaked, unit.conv2, x, rows=rows, add=True)

    def _mono(self, joined: Buffer, rows: int, width: int, conv: MonoConvolution) -> None:
        run, taps = self._run, conv.weight.shape[1]
        samples, bias = run.floats("samples", rows, rows=1), run.matrices.vectors(conv.bias)
        shader, grid = convolution.mono(width, taps, rows)
        kernel = run.matrices.vectors(*conv.weight.unbind(1))
        run.launch(shader, [whole(joined), whole(kernel), whole(bias), (samples, 0, 4 * rows)], grid)
        run.result(samples, rows, 1)

    def _rows_of(self, rows: int, width: int) -> Buffer:
        """Between two convolutions: there are never more than two at once."""
        self._turn += 1
        return self._run.floats(f"rows.{self._turn % 2}", width, rows=rows)
