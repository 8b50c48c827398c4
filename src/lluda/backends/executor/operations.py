"""The private vocabulary of the torch executor: operations on rows, as torch writes them.

Rows are the unit: all sequences of a step lie below each other in one ``[rows, width]`` tensor, without padding, and
only attention looks at which rows belong together. A backend overrides what it has a kernel for. Nothing outside
`lluda.backends` calls these.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional as F

from lluda.backends.backend import ComputeBackend, Precision
from lluda.backends.batch import Segment
from lluda.backends.blocks import LayerNorm, Norm, Projection, SwiGLU
from lluda.backends.components import Rotary
from lluda.backends.executor.q8_weight import Q8Weight
from lluda.backends.weight import DenseWeight, Weight
from lluda.formats.q8_0 import round_rows

RotaryTable = tuple[Tensor, Tensor]
"""Cosines and sines, each ``[rows, head_dim / 2]``."""

_SNAKE_ELEMENTS = 1 << 18
"""Numbers that SnakeBeta's five passes take at once: they stay in the caches, and threads meet seldom."""


class TorchOperations(ComputeBackend):
    """Products, norms, rotations, attention and activations in plain torch, the definition of each. ``q8_0_rows``
    rounds the rows that Q8_0 weights are multiplied with to Q8_0 too, as llama.cpp does.

    ``has_kernels``: whether a subclass computes blocks by kernels of its own, so that those it leaves to torch are
    worth showing. ``torch_blocks`` counts the calls of those, by the block's name; a captured step counts once."""

    has_kernels = False

    def __init__(self, device: torch.device, precision: Precision, *, q8_0_rows: bool = False) -> None:
        super().__init__(device, precision)
        self._q8_0_rows = q8_0_rows
        self.torch_blocks: Counter[str] = Counter()

    def describe(self) -> str:
        """Also counts the matrices that were decoded for want of a kernel, and names the blocks that ran on torch
        operations so far, where others run on kernels."""
        text = self._description() + self._describe_decoded()
        if not (self.has_kernels and self.torch_blocks):
            return text
        counts = ", ".join(f"{name} {count}" for name, count in sorted(self.torch_blocks.items()))
        return f"{text}; on torch operations: {counts}"

    def _description(self) -> str:
        return super().describe()

    def embedding(self, table: Weight, ids: Tensor) -> Tensor:
        """See `ComputeBackend.embedding`."""
        if isinstance(table, Q8Weight):
            return table.rows(ids, self.precision.residual)
        return F.embedding(ids, _dense(table)).to(self.precision.residual)

    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
        """``x [rows, in] @ weight.T + bias``: ``[rows, out]`` in the compute dtype, summed in float32 or better."""
        if isinstance(weight, Q8Weight):
            x = x.to(self.precision.residual)
            return weight.product(round_rows(x) if self._q8_0_rows else x, bias).to(self.precision.compute)
        if bias is not None:
            # Added by the product before it rounds; a released BF16 bias comes through the cast unchanged.
            return F.linear(x, _dense(weight), bias.to(x.dtype))
        # One row as a column: torch's BF16 product reads the weights a little faster that way round.
        return torch.mm(_dense(weight), x.T).T if len(x) == 1 else F.linear(x, _dense(weight))

    def project(self, x: Tensor, projection: Projection) -> Tensor:
        """`linear` with a projection's weight and bias."""
        return self.linear(x, projection.weight, projection.bias)

    def rms_norm(self, x: Tensor, norm: Norm) -> Tensor:
        """``x / sqrt(mean(x^2) + eps) * weight`` over the last axis (Zhang and Sennrich 2019), computed in the residual
        dtype and rounded once to the compute dtype."""
        return _normalise(x.to(self.precision.residual), norm).to(self.precision.compute)

    def layer_norm(self, x: Tensor, norm: LayerNorm) -> Tensor:
        """``(x - mean) / sqrt(variance + eps) * weight + bias`` over the last axis (Ba et al. 2016), computed in the
        residual dtype and rounded once to the compute dtype."""
        exact = x.to(self.precision.residual)
        return F.layer_norm(exact, exact.shape[-1:], norm.weight, norm.bias, norm.eps).to(self.precision.compute)

    def rotary_table(self, positions: Tensor, rotary: Rotary) -> RotaryTable:
        """Cosines and sines ``[rows, frequencies]`` in the rotary dtype, of positions as `Rotary` takes them, whole or
        fractional."""
        # Frequencies are float32 by definition (the models were trained so); a float64 run only widens them.
        angles = rotary.chosen(positions).to(self.precision.rotary) * rotary.frequencies.to(self.precision.rotary)
        cos, sin = angles.cos(), angles.sin()
        return (cos, sin) if rotary.scale == 1 else (cos * rotary.scale, sin * rotary.scale)

    def rotate(self, x: Tensor, table: RotaryTable, norm: Norm | None) -> Tensor:
        """RMSNorm of each head if given, then the half-split rotation of pairs (i, i + head_dim/2) (Su et al. 2021):
        ``x [rows, heads, head_dim]``, rounded once to the compute dtype."""
        x = x.to(self.precision.residual)
        if norm is not None:
            x = _normalise(x, norm)
        cos, sin = table[0][:, None], table[1][:, None]
        first, second = x.chunk(2, dim=-1)
        rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
        return rotated.to(self.precision.compute)

    def attention(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        layer: int,
        segments: Sequence[Segment],
        window: int | None,
    ) -> Tensor:
        """Store the rows' keys and values, then causal grouped-query attention of every row over its own sequence.

        ``query [rows, heads, head_dim]``, ``keys`` and ``values`` ``[rows, kv_heads, head_dim]``; scale
        1/sqrt(head_dim). Returns ``[rows, heads * head_dim]`` in the compute dtype."""
        outputs = []
        for segment in segments:
            rows = slice(segment.start, segment.start + segment.rows)
            stored = _store(segment, layer, keys[rows], values[rows])
            outputs.append(attend(query[rows], *stored, window))
        out = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return out.to(self.precision.compute)

    def block_attention(self, query: Tensor, keys: Tensor, values: Tensor, lengths: Sequence[int]) -> Tensor:
        """Attention inside consecutive blocks of ``lengths`` rows, each row seeing its whole block.

        ``query``, ``keys``, ``values`` ``[rows, heads, head_dim]``; scale 1/sqrt(head_dim). Returns
        ``[rows, heads * head_dim]`` in the compute dtype."""
        outputs, start = [], 0
        for length, equal in groupby(lengths):
            # Blocks of one length, one after the other, are the batch of one call.
            count = sum(1 for _ in equal)
            rows, start = slice(start, start + count * length), start + count * length
            q, k, v = (x[rows].reshape(count, length, *x.shape[1:]).transpose(1, 2) for x in (query, keys, values))
            outputs.append(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(count * length, -1))
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs)).to(self.precision.compute)

    def gated_silu(self, gate: Tensor, up: Tensor) -> Tensor:
        """``silu(gate) * up`` (Shazeer 2020), computed in float32 or better and rounded once."""
        exact = self.precision.residual
        return (F.silu(gate.to(exact)) * up.to(exact)).to(self.precision.compute)

    def swiglu(self, x: Tensor, mlp: SwiGLU) -> Tensor:
        """``down(silu(gate(x)) * up(x))``: ``[rows, hidden] -> [rows, hidden]`` in the compute dtype."""
        return self.linear(self.gated_silu(self.linear(x, mlp.gate_proj), self.linear(x, mlp.up_proj)), mlp.down_proj)

    def gelu(self, x: Tensor, *, tanh: bool = False) -> Tensor:
        """``x * Phi(x)`` (Hendrycks and Gimpel 2016), exact or by its ``tanh`` approximation, computed in float32 or
        better and rounded once to the compute dtype."""
        # Of BF16, too, torch computes it in float32 and rounds once, without a float32 copy.
        return F.gelu(x, approximate="tanh" if tanh else "none").to(self.precision.compute)

    def route(self, x: Tensor, router: Tensor, top_k: int, *, normalise: bool) -> tuple[Tensor, Tensor]:
        """Softmax over all experts of ``x @ router.T`` in the residual dtype, the ``top_k`` largest of each row,
        divided by their sum if ``normalise`` (spec section 5). Weights and int64 ids, both ``[rows, top_k]``."""
        probabilities = F.linear(x.to(router.dtype), router).softmax(dim=-1)
        weights, ids = probabilities.topk(top_k, dim=-1)
        return (weights / weights.sum(-1, keepdim=True) if normalise else weights), ids

    def conv2d(self, x: Tensor, kernel: Tensor, bias: Tensor, *, stride: int, padding: int) -> Tensor:
        """Cross-correlation ``[batch, in, height, width] -> [batch, out, height', width']`` with ``kernel``
        ``[out, in, kh, kw]``, in the compute dtype, summed in float32 or better. ``bias [out]`` is in the
        residual dtype."""
        return F.conv2d(x.to(kernel.dtype), kernel, bias.to(kernel.dtype), stride, padding)

    def snake_beta(self, x: Tensor, frequency: Tensor, amplitude: Tensor) -> Tensor:
        """``x + amplitude * sin(frequency * x)^2`` (Liu et al. 2020, with an amplitude of its own as in Lee et al.
        2023), computed in the residual dtype and rounded once to the compute dtype: ``x [rows, channels]``, the other
        two ``[channels]`` in the residual dtype."""
        out = torch.empty_like(x, dtype=self.precision.compute)
        at_once = max(1, _SNAKE_ELEMENTS // x.shape[1])
        for piece, target in zip(torch.split(x, at_once), torch.split(out, at_once), strict=True):
            exact = piece.to(self.precision.residual)
            wave = (exact * frequency).sin_().square_()
            target.copy_(torch.addcmul(exact, wave, amplitude, out=wave))
        return out


def _dense(weight: Weight) -> Tensor:
    assert isinstance(weight, DenseWeight), f"torch operations were given a {weight.format} weight"
    return weight.values


def _normalise(x: Tensor, norm: Norm) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps) * norm.weight


def _store(segment: Segment, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Write a segment's rows behind what is stored; returns all keys and values ``[kv_heads, length, head_dim]``."""
    key_buffer, value_buffer = segment.store.reserve(segment.rows)
    start, end = segment.store.length, segment.store.length + segment.rows
    key_buffer[layer, :, start:end] = keys.transpose(0, 1)
    value_buffer[layer, :, start:end] = values.transpose(0, 1)
    return key_buffer[layer, :, :end], value_buffer[layer, :, :end]


def attend(query: Tensor, keys: Tensor, values: Tensor, window: int | None) -> Tensor:
    """Attention of the last ``rows`` positions: query ``[rows, heads, d]``, keys ``[kv_heads, length, d]``."""
    rows, heads, head_dim = query.shape
    kv_heads, length, _ = keys.shape
    query = query.to(keys.dtype)
    if rows == 1:
        # The query heads that share a key head become rows of one product: no repeated keys, no mask.
        start = 0 if window is None else max(0, length - window)
        exact = torch.float64 if keys.dtype == torch.float64 else torch.float32
        grouped = query.reshape(kv_heads, heads // kv_heads, head_dim).to(exact)
        scores = torch.bmm(grouped, keys[:, start:].to(exact).transpose(1, 2)) / head_dim**0.5
        return torch.bmm(scores.softmax(-1), values[:, start:].to(exact)).reshape(1, heads * head_dim)
    mask = None if rows == length and window is None else _causal_mask(rows, length, window, query.device)
    out = F.scaled_dot_product_attention(
        query.transpose(0, 1)[None], keys[None], values[None], attn_mask=mask, is_causal=mask is None, enable_gqa=True
    )
    return out[0].transpose(0, 1).reshape(rows, heads * head_dim)


def _causal_mask(rows: int, length: int, window: int | None, device: torch.device) -> Tensor:
    """True where the last ``rows`` of ``length`` positions may look: ``[rows, length]``."""
    query_position = torch.arange(length - rows, length, device=device)[:, None]
    key_position = torch.arange(length, device=device)
    visible = key_position <= query_position
    return visible if window is None else visible & (key_position > query_position - window)
