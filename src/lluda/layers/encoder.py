"""The bidirectional transformer layer that the audio encoder and the vision encoder share."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lluda.backends.base import ComputeBackend, RotaryTable
from lluda.backends.blocks import LayerNorm, Projection


class EncoderLayer:
    """``x += out(attend(qkv(norm1(x))))``; ``x += fc2(gelu(fc1(norm2(x))))`` (spec sections 3.4 and 4.2).

    ``qkv`` is one fused projection ``[3 * heads * head_dim, hidden]`` or the three of them in that order; ``tanh``
    chooses the approximate GELU.
    """

    def __init__(
        self,
        backend: ComputeBackend,
        *,
        norm1: LayerNorm,
        qkv: Sequence[Projection],
        out: Projection,
        norm2: LayerNorm,
        fc1: Projection,
        fc2: Projection,
        heads: int,
        tanh: bool,
    ) -> None:
        self._backend = backend
        self._norm1, self._norm2 = norm1, norm2
        self._qkv, self._out, self._fc1, self._fc2 = qkv, out, fc1, fc2
        self._heads, self._tanh = heads, tanh

    def __call__(self, x: Tensor, lengths: Sequence[int], rotary: RotaryTable | None = None) -> Tensor:
        """Residual rows ``[rows, hidden]`` -> the same. Rows attend to their own block of ``lengths`` rows; ``rotary``
        (``[rows, head_dim / 2]`` each) turns queries and keys."""
        x = x + self._attend(self._backend.layer_norm(x, self._norm1), lengths, rotary)
        inner = self._linear(self._backend.layer_norm(x, self._norm2), self._fc1)
        return x + self._linear(self._backend.gelu(inner, tanh=self._tanh), self._fc2)

    def _attend(self, normed: Tensor, lengths: Sequence[int], rotary: RotaryTable | None) -> Tensor:
        projected = [self._linear(normed, projection) for projection in self._qkv]
        parts = projected if len(projected) == 3 else projected[0].chunk(3, dim=-1)
        query, key, value = (part.reshape(len(part), self._heads, -1) for part in parts)
        if rotary is not None:
            query, key = (self._backend.rotate(part, rotary, None) for part in (query, key))
        return self._linear(self._backend.block_attention(query, key, value, lengths), self._out)

    def _linear(self, x: Tensor, projection: Projection) -> Tensor:
        return self._backend.linear(x, projection.weight, projection.bias)
