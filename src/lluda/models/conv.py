"""Convolutions along time, built from kernels in torch's order, and the state of a stream.

A causal convolution of a stream needs the last input rows of what came before. They are in a :class:`ConvState`
that the caller owns, so that feeding a sequence in pieces of any size gives the same rows as feeding it whole.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lluda.backends.backend import ComputeBackend
from lluda.backends.blocks import Projection
from lluda.backends.components import (
    CausalConvolution,
    DepthwiseConvolution,
    MonoConvolution,
    TransposedConvolution,
)
from lluda.formats.plain import plain_tensor


class ConvState:
    """The input rows that the convolutions of one stream still need, by the convolution that needs them."""

    def __init__(self) -> None:
        self._contexts: dict[object, Tensor] = {}

    @property
    def nbytes(self) -> int:
        """Bytes in use; constant once every convolution had as many rows as its context takes."""
        return sum(rows.nbytes for rows in self._contexts.values())

    def with_context(self, convolution: object, x: Tensor, count: int, *, padded: bool) -> Tensor:
        """The last ``count`` input rows of ``convolution`` (its context), then ``x [rows, channels]``, whose last rows
        become the context. Before the first row there are ``count`` rows of zeros if ``padded``, else none."""
        if count == 0:
            return x
        before = self._contexts.get(convolution)
        if before is None:
            before = x.new_zeros(count if padded else 0, x.shape[1])
        extended = torch.cat((before, x))
        self._contexts[convolution] = extended[max(0, len(extended) - count) :].clone()
        return extended

    def has_begun(self, convolution: object) -> bool:
        """Whether ``convolution`` has seen a row."""
        return convolution in self._contexts

    def rows(self, convolution: object, like: Tensor, count: int, dtype: torch.dtype) -> Tensor:
        """The context of ``convolution``, its last ``count`` input rows ``[count, channels of like]``, for a backend
        that changes it in place; zeros at first."""
        if convolution not in self._contexts:
            self._contexts[convolution] = torch.zeros(count, like.shape[1], dtype=dtype, device=like.device)
        return self._contexts[convolution]


def causal_conv(backend: ComputeBackend, kernel: Tensor, bias: Tensor, dilation: int = 1) -> CausalConvolution:
    """Of ``kernel [out, in, taps]`` (torch's order) in the compute dtype and ``bias [out]`` in the residual dtype."""
    weight, _ = backend.take(plain_tensor(kernel.transpose(1, 2).flatten(1)), "matrix")
    return CausalConvolution(Projection(weight, bias), kernel.shape[2], dilation)


def transposed_conv(backend: ComputeBackend, kernel: Tensor, bias: Tensor, stride: int) -> TransposedConvolution:
    """A transposed convolution with ``kernel - stride`` output rows cut off at both ends (spec section 8.1), of
    ``kernel [in, out, m * stride]`` (torch's order) in the compute dtype and ``bias [out]`` in the residual dtype.

    With a kernel of ``m * stride`` each run of ``stride`` outputs is a convolution of m inputs, and the runs at both
    ends that had fewer are those cut off: n inputs give ``(n - m + 1) * stride`` outputs, the first m - 1 inputs none.
    """
    into, out, length = kernel.shape
    assert length % stride == 0, f"a transposed kernel of {length} is no multiple of its stride {stride}"
    # Output j of a run takes tap j of the newest input, j + stride of the one before it, and so on.
    runs = kernel.view(into, out, length // stride, stride).flip(2)
    rows = runs.permute(3, 1, 2, 0).reshape(stride * out, -1)
    weight, _ = backend.take(plain_tensor(rows), "matrix")
    return TransposedConvolution(Projection(weight, bias.repeat(stride)), length // stride, stride)


def depthwise_conv(kernel: Tensor, bias: Tensor) -> DepthwiseConvolution:
    """Of ``kernel [channels, 1, taps]``."""
    return DepthwiseConvolution(kernel[:, 0].to(bias.dtype).T.contiguous(), bias)


def mono_conv(kernel: Tensor, bias: Tensor) -> MonoConvolution:
    """Of ``kernel [1, in, taps]``."""
    return MonoConvolution(kernel[0].to(bias.dtype), bias)
