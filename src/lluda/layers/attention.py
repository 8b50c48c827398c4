"""Causal grouped-query attention over a key-value store, with optional per-head norms of queries and keys."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lluda.backends.base import ComputeBackend, Segment
from lluda.layers.linear import Linear
from lluda.layers.norm import RMSNorm
from lluda.layers.rotary import RotaryTable


class Attention:
    """``o_proj(attend(rotate(q_norm(q_proj(x))), rotate(k_norm(k_proj(x))), v_proj(x)))`` (spec section 2)."""

    def __init__(
        self,
        backend: ComputeBackend,
        *,
        q_proj: Linear,
        k_proj: Linear,
        v_proj: Linear,
        o_proj: Linear,
        q_norm: RMSNorm | None,
        k_norm: RMSNorm | None,
        head_dim: int,
        window: int | None,
    ) -> None:
        self._backend = backend
        self.o_proj = o_proj
        self.q_norm, self.k_norm = q_norm, k_norm
        self.head_dim = head_dim
        self.window = window
        self._inputs = (q_proj.weight, k_proj.weight, v_proj.weight)
        self._biases = (q_proj.bias, k_proj.bias, v_proj.bias)

    def __call__(self, x: Tensor, layer: int, table: RotaryTable, segments: Sequence[Segment]) -> Tensor:
        """Normalised rows ``[rows, hidden] -> [rows, hidden]``; the rows' keys and values are stored on the way."""
        rows = x.shape[0]
        query, key, value = self._backend.linear_group(x, self._inputs, self._biases)
        query = self._rotate(query.view(rows, -1, self.head_dim), table, self.q_norm)
        key = self._rotate(key.view(rows, -1, self.head_dim), table, self.k_norm)
        value = value.view(rows, -1, self.head_dim)
        return self.o_proj(self._backend.attention(query, segments, layer, key, value, self.window))

    def _rotate(self, x: Tensor, table: RotaryTable, norm: RMSNorm | None) -> Tensor:
        return self._backend.rotate(x, table, norm.weight if norm else None, norm.eps if norm else 0.0)
