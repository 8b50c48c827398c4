"""The two feed-forward layers: SwiGLU, and a mixture of SwiGLU experts."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lluda.backends.base import ComputeBackend, SwiGLU


class MLP:
    """``down_proj(silu(gate_proj(x)) * up_proj(x))`` (Shazeer 2020)."""

    def __init__(self, backend: ComputeBackend, weights: SwiGLU) -> None:
        self._backend = backend
        self.weights = weights

    def __call__(self, x: Tensor) -> Tensor:
        """``[rows, hidden] -> [rows, hidden]``."""
        return self._backend.swiglu(x, self.weights)


class MixtureOfExperts:
    """``top_k`` of the experts for each row, weighted by the router's softmax (spec section 5).

    The router ``gate`` acts in the residual dtype: its few numbers decide which experts run, and rounding its logits
    to BF16 is what makes two implementations choose differently.
    """

    def __init__(
        self, backend: ComputeBackend, gate: Tensor, experts: Sequence[SwiGLU], *, top_k: int, normalise: bool
    ) -> None:
        self._backend = backend
        self.gate = backend.vector(gate)
        self.experts = experts
        self.top_k = top_k
        self.normalise = normalise

    def __call__(self, x: Tensor) -> Tensor:
        """``[rows, hidden] -> [rows, hidden]`` in the residual dtype; only chosen experts are read."""
        weights, ids = self._backend.route(x, self.gate, self.top_k, self.normalise)
        return self._backend.mixture(x, weights, ids, self.experts)
