"""What a fused operation is given: the weights of one residual block, as tensors and numbers.

Compared and hashed by identity, so that a backend may keep what it derives from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lluda.backends.weight import Weight


@dataclass(frozen=True, slots=True, eq=False)
class Norm:
    """RMSNorm: a weight in the residual dtype and an epsilon."""

    weight: Tensor
    eps: float


@dataclass(frozen=True, slots=True, eq=False)
class LayerNorm:
    """LayerNorm: weight and bias in the residual dtype and an epsilon."""

    weight: Tensor
    bias: Tensor
    eps: float


@dataclass(frozen=True, slots=True, eq=False)
class Projection:
    """A matrix and, where the model has one, a bias in the residual dtype."""

    weight: Weight
    bias: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class SwiGLU:
    """Weights of ``down(silu(gate(x)) * up(x))``."""

    gate_proj: Weight
    up_proj: Weight
    down_proj: Weight


@dataclass(frozen=True, slots=True, eq=False)
class AttentionBlock:
    """``x + scale * o_proj(attend(rotate(q_norm(q_proj(n))), rotate(k_norm(k_proj(n))), v_proj(n)))``, ``n = norm(x)``.

    ``window`` limits each position to itself and the ``window - 1`` before it; None is all of them. ``scale [hidden]``
    is in the residual dtype; None is ones.
    """

    norm: Norm
    q_proj: Projection
    k_proj: Projection
    v_proj: Projection
    o_proj: Projection
    q_norm: Norm | None
    k_norm: Norm | None
    head_dim: int
    window: int | None
    scale: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class EncoderBlock:
    """``x += out(attend(qkv(norm1(x))))``; ``x += fc2(gelu(fc1(norm2(x))))``, attention in both directions.

    ``qkv`` is one fused projection ``[3 * heads * head_dim, hidden]`` or the three of them in that order; ``tanh``
    chooses the approximate GELU.
    """

    norm1: LayerNorm
    qkv: tuple[Projection, ...]
    out: Projection
    norm2: LayerNorm
    fc1: Projection
    fc2: Projection
    heads: int
    tanh: bool


@dataclass(frozen=True, slots=True, eq=False)
class SwiGLUBlock:
    """``x + scale * swiglu(norm(x))``; ``scale`` as in AttentionBlock."""

    norm: Norm
    mlp: SwiGLU
    scale: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class SharedExpert:
    """An expert that every row uses, times ``sigmoid(n @ gate.T)``; ``gate [1, hidden]`` is in the residual dtype."""

    mlp: SwiGLU
    gate: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class MixtureBlock:
    """``x + sum of the top_k experts of norm(x), weighted by the router``, and of the shared expert where it has one.

    ``router [experts, hidden]`` is in the residual dtype: its few numbers decide which experts run, and rounding its
    logits to BF16 is what makes two implementations choose differently. ``normalise``: the chosen weights sum to one.
    """

    norm: Norm
    router: Tensor
    experts: Sequence[SwiGLU]
    top_k: int
    normalise: bool
    shared: SharedExpert | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ResidualUnit:
    """``x + conv2(snake2(conv1(snake1(x))))`` over rows ``[rows, channels]``: conv1 is causal, of ``taps`` rows
    ``dilation`` apart (weight ``[channels, taps * channels]``), conv2 of one row; ``act1`` and ``act2`` are each a
    SnakeBeta's frequency and amplitude ``[channels]`` in the residual dtype."""

    act1: tuple[Tensor, Tensor]
    conv1: Projection
    act2: tuple[Tensor, Tensor]
    conv2: Projection
    taps: int
    dilation: int

    @property
    def context(self) -> int:
        """Earlier rows that conv1 sees."""
        return (self.taps - 1) * self.dilation
