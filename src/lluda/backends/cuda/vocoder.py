"""The vocoder of several streams, a frame of each at a time, as one captured step runs it: what `VocoderExecutor` does
stream by stream, with the rows of all streams in every product."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lluda.backends.blocks import ResidualUnit
from lluda.backends.capture import StreamRows
from lluda.backends.components import (
    CausalConvolution,
    ConvNeXtBlock,
    MonoConvolution,
    TransposedConvolution,
    UpsampleBlock,
    Vocoder,
)
from lluda.backends.cuda.kernels.triton_streams import windows
from lluda.backends.executor.executor import TorchExecutor

Act = tuple[Tensor, Tensor]
"""SnakeBeta's frequency and amplitude."""


class StreamVocoder(TorchExecutor):
    """Rows are ``[streams, rows, channels]``. ``missing`` of a stream's first rows do not exist, since each transposed
    convolution waits for one row more; they are computed, and taken for the zeros before a stream's beginning."""

    _pdl = False

    def vocode_together(self, vocoder: Vocoder, codes: Tensor, rows: StreamRows) -> Tensor:
        """See `ComputeBackend.vocode_together`."""
        x = self._embedded(vocoder, codes)
        x = self.run_layers(vocoder.layers, x, rows.frames, rows.segments)
        x, missing = self.rms_norm(x, vocoder.norm)[:, None], 0
        for widen, convnext in vocoder.widen:
            x, missing = self._widened(x, None, widen, rows, missing)
            x = self._convnext(x.to(self.precision.residual), convnext, rows, missing)
        x = self._convolved(x, None, vocoder.first, rows, missing)
        for block in vocoder.blocks:
            x, missing = self._upsampled(x, block, rows, missing)
        return self._samples(x, vocoder.act, vocoder.last, rows, missing).clamp_(-1, 1)

    def _upsampled(self, x: Tensor, block: UpsampleBlock, rows: StreamRows, missing: int) -> tuple[Tensor, int]:
        x, missing = self._widened(x, block.act, block.upsample, rows, missing)
        x = x.to(self.precision.residual)
        for unit in block.units:
            x = self._residual(x, unit, rows, missing)
        return x, missing

    def _widened(
        self, x: Tensor, act: Act | None, conv: TransposedConvolution, rows: StreamRows, missing: int
    ) -> tuple[Tensor, int]:
        """``[streams, rows * stride, out]`` in the compute dtype, and how many of them are missing at the beginning."""
        seen = self._windows(conv, x, act, rows, missing, taps=conv.taps)
        out = self.linear(seen, conv.projection.weight, conv.projection.bias)
        return out.view(len(x), x.shape[1] * conv.stride, -1), (missing + conv.taps - 1) * conv.stride

    def _convolved(self, x: Tensor, act: Act | None, conv: CausalConvolution, rows: StreamRows, missing: int) -> Tensor:
        seen = self._windows(conv, x, act, rows, missing, taps=conv.taps, dilation=conv.dilation)
        return self.linear(seen, conv.projection.weight, conv.projection.bias).view(len(x), x.shape[1], -1)

    def _residual(self, x: Tensor, unit: ResidualUnit, rows: StreamRows, missing: int) -> Tensor:
        seen = self._windows(unit, x, unit.act1, rows, missing, taps=unit.taps, dilation=unit.dilation)
        inner = self.linear(seen, unit.conv1.weight, unit.conv1.bias)
        outer = self.linear(self.snake_beta(inner, *unit.act2), unit.conv2.weight, unit.conv2.bias)
        return x.add_(outer.view(x.shape))

    def _convnext(self, x: Tensor, block: ConvNeXtBlock, rows: StreamRows, missing: int) -> Tensor:
        taps, channels = block.dwconv.weight.shape
        seen = self._windows(block.dwconv, x, None, rows, missing, taps=taps, dtype=x.dtype)
        inner = (seen.view(-1, taps, channels) * block.dwconv.weight).sum(1).add_(block.dwconv.bias)
        wide = self.gelu(self.project(self.layer_norm(inner, block.norm), block.pwconv1))
        outer = self.project(wide, block.pwconv2)
        return torch.addcmul(x, outer.view(x.shape).to(x.dtype), block.gamma)

    def _samples(self, x: Tensor, act: Act, conv: MonoConvolution, rows: StreamRows, missing: int) -> Tensor:
        """``[streams, rows]`` in the residual dtype, of rows that SnakeBeta rounds to the compute dtype."""
        x = self.snake_beta(x.flatten(0, 1), *act).view(x.shape)
        seen = self._windows(conv, x, None, rows, missing, taps=conv.weight.shape[1], dtype=conv.bias.dtype)
        return F.linear(seen, conv.weight.T.reshape(1, -1), conv.bias).view(len(x), -1)

    def _windows(
        self, conv: object, x: Tensor, act: Act | None, rows: StreamRows, missing: int, *, taps: int,
        dilation: int = 1, dtype: torch.dtype | None = None,
    ) -> Tensor:  # fmt: skip
        """See `triton_streams.windows`; in the compute dtype unless another is given."""
        dtype = dtype or self.precision.compute
        if taps == 1 and act is None:
            return x.flatten(0, 1).to(dtype)
        count = (taps - 1) * dilation
        context = rows.contexts.of(conv, x, count, dtype) if count else None
        return windows(
            x, context, rows.streams, rows.frames, act, dtype, taps=taps, dilation=dilation, missing=missing,
            pdl=self._pdl,
        )  # fmt: skip
