"""Convolutions along time of one or more streams, rows ``[time, channels]`` of each in, rows of each out, with explicit
streaming state.

A causal convolution of a stream needs the last input rows of what came before. They are kept in a :class:`ConvState`
that the caller owns, so that feeding a sequence in pieces of any size gives the same rows as feeding it whole. Streams
that are convolved together read each weight once, and each gets the rows that it gets alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lluda.backends.backend import ComputeBackend
from lluda.backends.blocks import Projection


class ConvState:
    """The input rows that the convolutions of one stream still need, by the convolution that needs them."""

    def __init__(self) -> None:
        self._kept: dict[object, Tensor] = {}

    @property
    def nbytes(self) -> int:
        """Bytes held; constant once every convolution has seen as many rows as it keeps."""
        return sum(rows.nbytes for rows in self._kept.values())

    def with_context(self, convolution: object, x: Tensor, count: int, *, padded: bool) -> Tensor:
        """The last ``count`` rows that ``convolution`` has seen, then ``x [rows, channels]``, whose last rows are kept
        in turn. Before the first row there are ``count`` rows of zeros if ``padded``, else none."""
        if count == 0:
            return x
        before = self._kept.get(convolution)
        if before is None:
            before = x.new_zeros(count if padded else 0, x.shape[1])
        joined = torch.cat((before, x))
        self._kept[convolution] = joined[max(0, len(joined) - count) :].clone()
        return joined

    def rows(self, convolution: object, like: Tensor, count: int, dtype: torch.dtype) -> Tensor:
        """Where the last ``count`` rows that ``convolution`` has seen lie, ``[count, channels of like]``, for a backend
        that changes them in place; zeros at first."""
        if convolution not in self._kept:
            self._kept[convolution] = torch.zeros(count, like.shape[1], dtype=dtype, device=like.device)
        return self._kept[convolution]


def with_contexts(
    convolution: object, streams: Sequence[Tensor], kept: Sequence[ConvState], count: int, *, padded: bool
) -> list[Tensor]:
    """`ConvState.with_context` of each stream with its own."""
    return [own.with_context(convolution, x, count, padded=padded) for x, own in zip(streams, kept, strict=True)]


class FixedConvState(ConvState):
    """The rows of a stream past its first frame, in places that do not change: a captured step finds them there."""

    def __init__(self, begun: ConvState) -> None:
        super().__init__()
        self._kept = {convolution: rows.clone() for convolution, rows in begun._kept.items()}

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that is kept."""
        return tuple(self._kept.values())

    def begin(self, begun: ConvState) -> None:
        """Go on where another stream of the same network stands."""
        for convolution, rows in begun._kept.items():
            self._kept[convolution].copy_(rows)

    def with_context(self, convolution: object, x: Tensor, count: int, *, padded: bool) -> Tensor:  # noqa: ARG002
        """As `ConvState.with_context`."""
        if count == 0:
            return x
        kept = self._kept[convolution]
        joined = torch.cat((kept, x))
        kept.copy_(joined[len(joined) - count :])
        return joined


class CausalConv:
    """Convolution whose output i sees inputs up to i, with zeros before the first (spec section 8).

    ``kernel [out, in, taps]`` (torch's order) in the compute dtype, ``bias [out]`` in the residual dtype.
    """

    def __init__(self, backend: ComputeBackend, kernel: Tensor, bias: Tensor, dilation: int = 1) -> None:
        self._backend, self._dilation, self._taps = backend, dilation, kernel.shape[2]
        self.projection = Projection(backend.matrix(kernel.transpose(1, 2).flatten(1))[0], bias)
        """Its product: weight ``[out, taps * in]``."""
        self._bias = bias

    def __call__(self, streams: Sequence[Tensor], kept: Sequence[ConvState]) -> list[Tensor]:
        """``[rows, in]`` -> ``[rows, out]`` of each stream, both in the compute dtype."""
        joined = with_contexts(self, streams, kept, (self._taps - 1) * self._dilation, padded=True)
        return self._backend.conv1d(
            joined, self.projection.weight, self._bias, taps=self._taps, dilation=self._dilation
        )


class PointwiseConv:
    """Convolution of one tap, with a weight ``[out, in]`` of any format."""

    def __init__(self, backend: ComputeBackend, projection: Projection) -> None:
        assert projection.bias is not None, "a vocoder's convolutions have biases"
        self._backend, self._weight, self._bias = backend, projection.weight, projection.bias

    def __call__(self, streams: Sequence[Tensor]) -> list[Tensor]:
        """``[rows, in]`` -> ``[rows, out]`` of each stream, both in the compute dtype."""
        return self._backend.conv1d(streams, self._weight, self._bias, taps=1, dilation=1)


class TransposedConv:
    """Transposed convolution with ``kernel - stride`` output rows cut off at both ends (spec section 8.1).

    With a kernel of ``m * stride`` each run of ``stride`` outputs is a convolution of m inputs, and the runs at both
    ends that had fewer are those cut off: n inputs give ``(n - m + 1) * stride`` outputs, the first m - 1 inputs none.
    ``kernel [in, out, m * stride]`` (torch's order) in the compute dtype, ``bias [out]`` in the residual dtype.
    """

    def __init__(self, backend: ComputeBackend, kernel: Tensor, bias: Tensor, stride: int) -> None:
        into, self._out, length = kernel.shape
        assert length % stride == 0, f"a transposed kernel of {length} is no multiple of its stride {stride}"
        self._backend, self._bias, self._taps = backend, bias.repeat(stride), length // stride
        # Output j of a run takes tap j of the newest input, j + stride of the one before it, and so on.
        runs = kernel.view(into, self._out, self._taps, stride).flip(2)
        self._weight = backend.matrix(runs.permute(3, 1, 2, 0).reshape(stride * self._out, -1))[0]

    def __call__(self, streams: Sequence[Tensor], kept: Sequence[ConvState]) -> list[Tensor]:
        """``[rows, in]`` -> ``[rows * stride, out]`` of each stream (fewer at its start), both in the compute dtype."""
        joined = with_contexts(self, streams, kept, self._taps - 1, padded=False)
        out = [x.new_empty(0, self._out) for x in streams]
        full = [index for index, x in enumerate(joined) if len(x) >= self._taps]
        if full:
            inputs = [joined[index] for index in full]
            runs = self._backend.conv1d(inputs, self._weight, self._bias, taps=self._taps, dilation=1)
            for index, rows in zip(full, runs, strict=True):
                out[index] = rows.view(-1, self._out)
        return out


class DepthwiseConv:
    """Causal convolution of each channel by itself: ``kernel [channels, 1, taps]``. A few operations a value, computed
    in the residual dtype without rounding."""

    def __init__(self, kernel: Tensor, bias: Tensor) -> None:
        self._taps, self._bias = kernel[:, 0].to(bias.dtype).T.contiguous(), bias

    def __call__(self, x: Tensor, kept: ConvState) -> Tensor:
        """``[rows, channels]`` -> the same, both in the residual dtype."""
        joined = kept.with_context(self, x, len(self._taps) - 1, padded=True)
        out = self._bias.expand_as(x)
        for tap, weights in enumerate(self._taps):
            out = torch.addcmul(out, joined[tap : tap + len(x)], weights)
        return out


class MonoConv:
    """Causal convolution to one channel: ``kernel [1, in, taps]``. It makes the samples themselves, in the residual
    dtype, since 8 bits of mantissa are too few for them."""

    def __init__(self, kernel: Tensor, bias: Tensor) -> None:
        self._weight, self._bias = kernel[0].to(bias.dtype), bias

    def __call__(self, x: Tensor, kept: ConvState) -> Tensor:
        """``[rows, in]`` in the compute dtype -> ``[rows]`` in the residual dtype."""
        taps = self._weight.shape[1]
        products = kept.with_context(self, x, taps - 1, padded=True).to(self._bias.dtype) @ self._weight
        return sum((products[tap : tap + len(x), tap] for tap in range(taps)), start=self._bias)
