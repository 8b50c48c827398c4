"""The reference backend: plain torch on any device, the definition of correct that every other backend is tested by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional as F

from lluda.backends.backend import ComputeBackend, Precision, RotaryTable
from lluda.backends.blocks import DenseWeight, LayerNorm, Norm, Segment, Weight
from lluda.backends.q8_0 import Q8Weight, rounded

_BLOCKED_ROWS = 1
"""Rows of a product for which oneDNN is asked to choose its blocks: decoding's."""

_SNAKE_ELEMENTS = 1 << 18
"""Numbers that SnakeBeta's five passes take at once: they stay in the caches, and threads meet seldom."""

_FORMATS = {torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64"}


@dataclass(frozen=True, slots=True, eq=False)
class BlockedWeight(DenseWeight):
    """A matrix that is also held in the order of blocks in which oneDNN's BF16 product reads it fastest.

    ``values`` are for looking up rows; products read ``blocked`` alone."""

    blocked: Tensor


class ReferenceBackend(ComputeBackend):
    """Every primitive as torch writes it. ``blocked`` (BF16 on a CPU, see :func:`can_block`) trades a copy of the
    matrices for products of few rows that read them about 1.4 times as fast (journal/06-generation.md). ``q8_0_rows``
    rounds the rows that Q8_0 weights are multiplied with to Q8_0 too, as llama.cpp does."""

    name = "reference"

    def __init__(
        self,
        device: torch.device,
        precision: Precision,
        *,
        blocked: bool = False,
        q8_0_rows: bool = False,
        remark: str = "",
    ) -> None:
        super().__init__(device, precision)
        self._q8_0_rows = q8_0_rows
        self._blocked = blocked
        self._remark = remark

    def describe(self) -> str:
        """Also says why no faster backend was chosen, where one was wanted."""
        blocked = ", weights in oneDNN blocks" if self._blocked else ""
        blocked += ", rows rounded to Q8_0 for Q8_0 weights" if self._q8_0_rows else ""
        return super().describe() + blocked + (f" ({self._remark})" if self._remark else "")

    def matrix(self, values: Tensor) -> tuple[Weight, bool]:
        """Zero-copy where the tensor is already in the compute dtype and on the device, unless it is put in blocks."""
        taken = values.to(self.device, self.precision.compute)
        if not self._blocked:
            return DenseWeight(taken, _FORMATS[taken.dtype]), taken is values
        blocked = torch.ops.mkldnn._reorder_linear_weight(taken, _BLOCKED_ROWS)
        # The stored bytes may be let go of: a lookup of a few rows brings back their pages alone.
        return BlockedWeight(taken, "BF16", blocked), False

    def q8_0_matrix(self, blocks: Tensor) -> Weight | None:
        """Kept as blocks in a BF16 run, and where rows are to be rounded too: else the plain values are as exact, and
        faster."""
        kept = self.precision.compute is torch.bfloat16 or self._q8_0_rows
        return Q8Weight(blocks.to(self.device)) if kept else None

    def embedding(self, weight: Weight, ids: Tensor) -> Tensor:
        if isinstance(weight, Q8Weight):
            return weight.rows(ids, self.precision.residual)
        return F.embedding(ids, _dense(weight)).to(self.precision.residual)

    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
        if isinstance(weight, Q8Weight):
            x = x.to(self.precision.residual)
            return weight.product(rounded(x) if self._q8_0_rows else x, bias).to(self.precision.compute)
        if isinstance(weight, BlockedWeight):
            bias = None if bias is None else bias.to(x.dtype)
            product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight.blocked, bias, "none", [], "")
            return product
        if bias is not None:
            # Added by the product before it rounds; a released BF16 bias comes through the cast unchanged.
            return F.linear(x, _dense(weight), bias.to(x.dtype))
        # One row as a column: torch's BF16 product reads the weights a little faster that way round.
        return torch.mm(_dense(weight), x.T).T if len(x) == 1 else F.linear(x, _dense(weight))

    def rms_norm(self, x: Tensor, norm: Norm) -> Tensor:
        return _normalise(x.to(self.precision.residual), norm).to(self.precision.compute)

    def rotary_table(self, positions: Tensor, inverse_frequencies: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        # Frequencies are float32 by definition (the models were trained so); a float64 run only widens them.
        angles = positions.to(self.precision.rotary) * inverse_frequencies.to(self.precision.rotary)
        return (angles.cos(), angles.sin()) if scale == 1 else (angles.cos() * scale, angles.sin() * scale)

    def rotate(self, x: Tensor, table: RotaryTable, norm: Norm | None) -> Tensor:
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
        outputs = []
        for segment in segments:
            rows = slice(segment.start, segment.start + segment.rows)
            stored = _store(segment, layer, keys[rows], values[rows])
            outputs.append(attend(query[rows], *stored, window))
        out = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return out.to(self.precision.compute)

    def gated_silu(self, gate: Tensor, up: Tensor) -> Tensor:
        exact = self.precision.residual
        return (F.silu(gate.to(exact)) * up.to(exact)).to(self.precision.compute)

    def route(self, x: Tensor, router: Tensor, top_k: int, *, normalise: bool) -> tuple[Tensor, Tensor]:
        probabilities = F.linear(x.to(router.dtype), router).softmax(dim=-1)
        weights, ids = probabilities.topk(top_k, dim=-1)
        return (weights / weights.sum(-1, keepdim=True) if normalise else weights), ids

    def layer_norm(self, x: Tensor, norm: LayerNorm) -> Tensor:
        exact = x.to(self.precision.residual)
        return F.layer_norm(exact, exact.shape[-1:], norm.weight, norm.bias, norm.eps).to(self.precision.compute)

    def gelu(self, x: Tensor, *, tanh: bool = False) -> Tensor:
        # Of BF16, too, torch computes it in float32 and rounds once, without a float32 copy.
        return F.gelu(x, approximate="tanh" if tanh else "none").to(self.precision.compute)

    def block_attention(self, query: Tensor, keys: Tensor, values: Tensor, lengths: Sequence[int]) -> Tensor:
        outputs, start = [], 0
        for length, equal in groupby(lengths):
            # Blocks of one length, one after the other, are the batch of one call.
            count = sum(1 for _ in equal)
            rows, start = slice(start, start + count * length), start + count * length
            q, k, v = (x[rows].reshape(count, length, *x.shape[1:]).transpose(1, 2) for x in (query, keys, values))
            outputs.append(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(count * length, -1))
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs)).to(self.precision.compute)

    def conv2d(self, x: Tensor, kernel: Tensor, bias: Tensor, *, stride: int, padding: int) -> Tensor:
        return F.conv2d(x.to(kernel.dtype), kernel, bias.to(kernel.dtype), stride, padding)

    def snake_beta(self, x: Tensor, frequency: Tensor, amplitude: Tensor) -> Tensor:
        out = torch.empty_like(x, dtype=self.precision.compute)
        at_once = max(1, _SNAKE_ELEMENTS // x.shape[1])
        for piece, target in zip(torch.split(x, at_once), torch.split(out, at_once), strict=True):
            exact = piece.to(self.precision.residual)
            wave = (exact * frequency).sin_().square_()
            target.copy_(torch.addcmul(exact, wave, amplitude, out=wave))
        return out


def can_block(device: torch.device, precision: Precision) -> bool:
    """Whether torch has the BF16 product over oneDNN blocks here."""
    if device.type != "cpu" or precision.compute is not torch.bfloat16:
        return False
    operations = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    built = all(hasattr(torch.ops.mkldnn, name) for name in operations)
    return built and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _normalise(x: Tensor, norm: Norm) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps) * norm.weight


def _store(segment: Segment, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Write a segment's rows behind what is stored; returns all keys and values ``[kv_heads, length, head_dim]``."""
    key_buffer, value_buffer = segment.store.reserve(segment.rows)
    start, end = segment.store.length, segment.store.length + segment.rows
    key_buffer[layer, :, start:end] = keys.transpose(0, 1)
    value_buffer[layer, :, start:end] = values.transpose(0, 1)
    return key_buffer[layer, :, :end], value_buffer[layer, :, :end]


def _dense(weight: Weight) -> Tensor:
    assert isinstance(weight, DenseWeight), f"the reference backend was given a {weight.format} weight"
    return weight.values


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
