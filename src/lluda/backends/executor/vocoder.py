"""The vocoder and its convolutions, as the torch executor runs them: several streams at once, each with a state of its
own, each the samples that it gets alone.

A causal convolution needs the last inputs of what came before; they are in the stream's `ConvContext`, so that a
sequence fed in pieces of any size gives what it gives whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lluda.backends.batch import ConvContext, Segment, VocoderState
from lluda.backends.blocks import ResidualUnit
from lluda.backends.components import (
    CausalConvolution,
    ConvNeXtBlock,
    DepthwiseConvolution,
    MonoConvolution,
    Observer,
    TransposedConvolution,
    UpsampleBlock,
    Vocoder,
)
from lluda.backends.executor.decoder import DecoderExecutor
from lluda.backends.weight import Weight

_MIN_WINDOWS, _WINDOW_ELEMENTS = 256, 1 << 20
"""Windows of a convolution that are copied out at once: so many numbers, but enough rows to make a product of."""


class VocoderExecutor(DecoderExecutor):
    """``streams`` are rows ``[rows, channels]`` of each stream, ``contexts`` what its convolutions keep."""

    def vocode(
        self,
        vocoder: Vocoder,
        codes: Sequence[Tensor],
        states: Sequence[VocoderState],
        observe: Observer | None = None,
    ) -> list[Tensor]:
        """See `ComputeBackend.vocode`."""

        def notify(name: str, streams: Sequence[Tensor]) -> None:
            if observe:
                observe(name, _joined(streams))

        compute = self.precision.compute
        contexts = [state.conv_state for state in states]
        streams = self._frames(vocoder, codes, states, observe)
        notify("pre_transformer", streams)
        for index, (widen, convnext) in enumerate(vocoder.widen):
            widened = self.transposed_conv([x.to(compute) for x in streams], widen, contexts)
            streams = self.convnext(widened, convnext, contexts)
            notify(f"upsample.{index}", streams)
        streams = self.causal_conv([x.to(compute) for x in streams], vocoder.first, contexts)
        notify("decoder.0", streams)
        for index, block in enumerate(vocoder.blocks, start=1):
            streams = self.upsample_block(streams, block, contexts)
            notify(f"decoder.{index}", streams)
        return self.samples(streams, vocoder, contexts)

    def samples(self, streams: Sequence[Tensor], vocoder: Vocoder, contexts: Sequence[ConvContext]) -> list[Tensor]:
        """The vocoder's last SnakeBeta and convolution, cut off at ±1: ``[rows, channels]`` of each stream ->
        ``[rows]``, both in the residual dtype."""
        return [
            self.mono_conv(self.snake_beta(x, *vocoder.act), vocoder.last, own).clamp_(-1, 1)
            for x, own in zip(streams, contexts, strict=True)
        ]

    def _frames(
        self, vocoder: Vocoder, codes: Sequence[Tensor], states: Sequence[VocoderState], observe: Observer | None
    ) -> list[Tensor]:
        """Codes ``[codebooks, n]`` of each stream -> the transformer's rows ``[n, hidden]`` in the compute dtype."""
        lengths = [own.shape[1] for own in codes]
        rows: list[Tensor] = []
        for part in self.step_parts(lengths):
            rows += self._transformed(vocoder, codes[part], states[part], observe)
        for count, state in zip(lengths, states, strict=True):
            state.cache.advance(count)
            state.frames += count
        return [self.rms_norm(x, vocoder.norm) for x in rows]

    def _transformed(
        self, vocoder: Vocoder, codes: Sequence[Tensor], states: Sequence[VocoderState], observe: Observer | None
    ) -> list[Tensor]:
        lengths = [own.shape[1] for own in codes]
        segments: list[Segment] = []
        for count, state in zip(lengths, states, strict=True):
            start = sum(segment.rows for segment in segments)
            segments.append(Segment(start, count, state.cache))
        x = _joined([self._embedded(vocoder, own) for own in codes])
        if observe:
            observe("embeddings", x)
        places = zip(states, lengths, strict=True)
        positions = torch.cat([state.positions(count, x.device) for state, count in places])
        return list(torch.split(self.run_layers(vocoder.layers, x, positions, segments, observe), lengths))

    def _embedded(self, vocoder: Vocoder, codes: Tensor) -> Tensor:
        rows = self.embedding(vocoder.table, (codes + vocoder.offsets).flatten())
        return rows.view(len(codes), codes.shape[1], -1).mean(0)

    def upsample_block(
        self, streams: Sequence[Tensor], block: UpsampleBlock, contexts: Sequence[ConvContext]
    ) -> list[Tensor]:
        """See UpsampleBlock: ``[rows, channels]`` -> ``[rows * stride, out]`` in the residual dtype."""
        widened = self.transposed_conv([self.snake_beta(x, *block.act) for x in streams], block.upsample, contexts)
        lengths = [len(x) for x in widened]
        x = _joined(widened)
        for unit in block.units:
            x = self.residual_unit(x, lengths, unit, contexts)
        return list(torch.split(x, lengths))

    def residual_unit(
        self, x: Tensor, lengths: Sequence[int], unit: ResidualUnit, contexts: Sequence[ConvContext]
    ) -> Tensor:
        """See ResidualUnit: rows ``[rows, channels]`` in the residual dtype, changed in place: ``lengths[i]`` of stream
        i, one stream below the other, which do not depend on each other."""
        self.torch_blocks["residual_unit"] += 1
        assert unit.conv1.bias is not None and unit.conv2.bias is not None, "a vocoder's convolutions have biases"
        streams = torch.split(x, list(lengths))
        joined = [
            own.with_context(unit, self.snake_beta(rows, *unit.act1), unit.context, padded=True)
            for own, rows in zip(contexts, streams, strict=True)
        ]
        inner = self.conv1d(joined, unit.conv1.weight, unit.conv1.bias, taps=unit.taps, dilation=unit.dilation)
        snaked = [self.snake_beta(rows, *unit.act2) for rows in inner]
        outer = self.conv1d(snaked, unit.conv2.weight, unit.conv2.bias, taps=1, dilation=1)
        for rows, added in zip(streams, outer, strict=True):
            rows.add_(added)
        return x

    def convnext(
        self, streams: Sequence[Tensor], block: ConvNeXtBlock, contexts: Sequence[ConvContext]
    ) -> list[Tensor]:
        """See ConvNeXtBlock: ``[rows, channels]`` -> the same of each stream, in the residual dtype."""
        self.torch_blocks["convnext"] += 1
        assert block.pwconv1.bias is not None and block.pwconv2.bias is not None, "pointwise convolutions have biases"
        inner = [
            self.layer_norm(self.depthwise_conv(x, block.dwconv, own), block.norm)
            for x, own in zip(streams, contexts, strict=True)
        ]
        wide = self.conv1d(inner, block.pwconv1.weight, block.pwconv1.bias, taps=1, dilation=1)
        wide = [self.gelu(x) for x in wide]
        residual = self.precision.residual
        outer = self.conv1d(wide, block.pwconv2.weight, block.pwconv2.bias, taps=1, dilation=1, dtype=residual)
        return [torch.addcmul(x, rows, block.gamma) for x, rows in zip(streams, outer, strict=True)]

    def causal_conv(
        self, streams: Sequence[Tensor], conv: CausalConvolution, contexts: Sequence[ConvContext]
    ) -> list[Tensor]:
        """See CausalConvolution: ``[rows, in]`` -> ``[rows, out]`` of each stream, both in the compute dtype."""
        assert conv.projection.bias is not None, "a vocoder's convolutions have biases"
        context = (conv.taps - 1) * conv.dilation
        joined = [own.with_context(conv, x, context, padded=True) for x, own in zip(streams, contexts, strict=True)]
        weight, bias = conv.projection.weight, conv.projection.bias
        return self.conv1d(joined, weight, bias, taps=conv.taps, dilation=conv.dilation)

    def transposed_conv(
        self, streams: Sequence[Tensor], conv: TransposedConvolution, contexts: Sequence[ConvContext]
    ) -> list[Tensor]:
        """See TransposedConvolution: ``[rows, in]`` in the compute dtype -> ``[rows * stride, out]`` in the residual
        dtype of each stream (fewer at its start)."""
        weight, bias = conv.projection.weight, conv.projection.bias
        assert bias is not None, "a vocoder's convolutions have biases"
        joined = [
            own.with_context(conv, x, conv.taps - 1, padded=False) for x, own in zip(streams, contexts, strict=True)
        ]
        width = weight.out_features // conv.stride
        residual = self.precision.residual
        out = [x.new_empty(0, width, dtype=residual) for x in streams]
        full = [index for index, x in enumerate(joined) if len(x) >= conv.taps]
        if full:
            inputs = [joined[index] for index in full]
            runs = self.conv1d(inputs, weight, bias, taps=conv.taps, dilation=1, dtype=residual)
            for index, rows in zip(full, runs, strict=True):
                out[index] = rows.view(-1, width)
        return out

    def depthwise_conv(self, x: Tensor, conv: DepthwiseConvolution, context: ConvContext) -> Tensor:
        """See DepthwiseConvolution: ``[rows, channels]`` -> the same, both in the residual dtype."""
        joined = context.with_context(conv, x, len(conv.weight) - 1, padded=True)
        out = conv.bias.expand_as(x)
        for tap, weights in enumerate(conv.weight):
            out = torch.addcmul(out, joined[tap : tap + len(x)], weights)
        return out

    def mono_conv(self, x: Tensor, conv: MonoConvolution, context: ConvContext) -> Tensor:
        """See MonoConvolution: ``[rows, in]`` in the compute dtype -> ``[rows]`` in the residual dtype."""
        self.torch_blocks["mono_conv"] += 1
        taps = conv.weight.shape[1]
        products = context.with_context(conv, x, taps - 1, padded=True).to(conv.bias.dtype) @ conv.weight
        return sum((products[tap : tap + len(x), tap] for tap in range(taps)), start=conv.bias)

    def conv1d(
        self,
        streams: Sequence[Tensor],
        weight: Weight,
        bias: Tensor,
        *,
        taps: int,
        dilation: int,
        dtype: torch.dtype | None = None,
    ) -> list[Tensor]:
        """Convolution of each stream along its rows: output i is ``weight [out, taps * in]`` times rows i,
        i + dilation, … of ``x [n + (taps - 1) * dilation, in]``, one below the other, ``+ bias``. Returns ``[n, out]``
        of each in ``dtype``, the compute dtype if None, summed in float32 or better; a backend need not round sums to
        the compute dtype where ``dtype`` is a wider one. What else is convolved makes no difference. Defined by
        :meth:`linear`, so that it takes weights of any format."""
        made = (self._convolve(x.contiguous(), weight, bias, taps, dilation) for x in streams)
        return [x.to(dtype or self.precision.compute) for x in made]

    def _convolve(self, x: Tensor, weight: Weight, bias: Tensor, taps: int, dilation: int) -> Tensor:
        rows, width = len(x) - (taps - 1) * dilation, x.shape[1]
        windows = x.as_strided((rows, taps, width), (width, dilation * width, 1))
        # A few windows at a time, which stay in the caches: all of them are many times the rows they overlap in.
        at_once = max(_MIN_WINDOWS, _WINDOW_ELEMENTS // (taps * width)) if taps > 1 else max(rows, 1)
        parts = [self.linear(part.reshape(-1, taps * width), weight, bias) for part in torch.split(windows, at_once)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _joined(streams: Sequence[Tensor]) -> Tensor:
    return streams[0] if len(streams) == 1 else torch.cat(list(streams))
