"""The ComputeBackend seam: one table of operations that every model is written in.

Rows are the unit: all sequences of a step stand below each other in one ``[rows, width]`` tensor, without padding, and
only attention looks at which rows belong together. A backend knows tensors and integers, never configs or names.

Primitive operations are abstract. Fused ones have a definition here in terms of the primitives, which is what they
mean; a backend overrides them where one pass is faster than several.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Precision:
    """Which dtype holds what. ``compute`` is what matrices and their inputs are in, ``residual`` the residual stream and
    the vectors added to or multiplied with it, ``rotary`` the rotation angles."""

    compute: torch.dtype
    residual: torch.dtype
    rotary: torch.dtype

    @classmethod
    def of(cls, name: str) -> Precision:
        """The policy for a dtype name. In BF16 only matrix inputs are rounded: the residual stream and all that acts on
        it stay float32, which is what puts a BF16 run nearer to the float64 truth (docs/numerics.md)."""
        if name == "bf16":
            return cls(torch.bfloat16, torch.float32, torch.float32)
        exact = {"f32": torch.float32, "f64": torch.float64}[name]
        return cls(exact, exact, exact)


class Weight(Protocol):
    """A matrix ``[out_features, in_features]`` in some format. Only backends look inside."""

    out_features: int
    in_features: int
    format: str


@dataclass(frozen=True, slots=True)
class DenseWeight:
    """A matrix stored as plain numbers, row-major ``[out_features, in_features]``."""

    values: Tensor
    format: str

    @property
    def out_features(self) -> int:
        """Rows: width of the product."""
        return self.values.shape[0]

    @property
    def in_features(self) -> int:
        """Columns: width of the rows it multiplies."""
        return self.values.shape[1]


class KeyValueStore(Protocol):
    """Where one sequence's keys and values live. ``length`` positions are filled before a step; the step's rows are
    appended layer by layer and counted once, by the engine, when the step is done."""

    length: int

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store ``[rows, kv_heads, head_dim]`` after the filled positions; returns all keys and values including them,
        each ``[kv_heads, length + rows, head_dim]`` in the store's dtype."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive rows of a step that belong to one sequence."""

    start: int
    rows: int
    store: KeyValueStore


@dataclass(frozen=True, slots=True)
class SwiGLU:
    """Weights of ``down(silu(gate(x)) * up(x))``."""

    gate_proj: Weight
    up_proj: Weight
    down_proj: Weight


class ComputeBackend(ABC):
    """The operations, on one ``device`` in one ``precision``. Chosen once at load and printed."""

    name: str

    def __init__(self, device: torch.device, precision: Precision) -> None:
        self.device = device
        self.precision = precision

    def describe(self) -> str:
        """One line for people: what computes, where, in which format."""
        compute = str(self.precision.compute).removeprefix("torch.")
        return f"{self.name} backend on {self.device}, {compute}, {torch.get_num_threads()} threads"

    # Parameters

    @abstractmethod
    def matrix(self, values: Tensor) -> Weight:
        """Take a matrix ``[out, in]`` into this backend's device and format."""

    def vector(self, values: Tensor) -> Tensor:
        """Take a norm weight, bias or scale, in the residual dtype."""
        return values.to(self.device, self.precision.residual)

    # Primitive operations

    @abstractmethod
    def embedding(self, weight: Weight, ids: Tensor) -> Tensor:
        """Rows ``ids`` (int64 ``[rows]``) of the table, in the residual dtype: ``[rows, in_features]``."""

    @abstractmethod
    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
        """``x [rows, in] @ weight.T + bias``: ``[rows, out]`` in the compute dtype, summed in float32 or better."""

    @abstractmethod
    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """``x / sqrt(mean(x^2) + eps) * weight`` over the last axis (Zhang and Sennrich 2019), computed in the residual
        dtype and rounded once to the compute dtype."""

    @abstractmethod
    def rotary_table(self, positions: Tensor, inverse_frequencies: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines ``[rows, frequencies]`` of ``position * frequency`` in the rotary dtype."""

    @abstractmethod
    def rotate(self, x: Tensor, table: tuple[Tensor, Tensor], norm: Tensor | None, eps: float) -> Tensor:
        """Per-head RMSNorm with weight ``norm [head_dim]`` if given, then the half-split rotation of pairs
        (i, i + head_dim/2) (Su et al. 2021): ``x [rows, heads, head_dim]``, rounded once to the compute dtype."""

    @abstractmethod
    def attention(self, query: Tensor, segments: Sequence[Segment], layer: int, keys: Tensor, values: Tensor,
                  window: int | None) -> Tensor:
        """Store the rows' keys and values, then causal grouped-query attention of every row over its own sequence.

        ``query [rows, heads, head_dim]``, ``keys`` and ``values`` ``[rows, kv_heads, head_dim]``; scale
        1/sqrt(head_dim); ``window`` limits a row to itself and the window - 1 positions before it. Returns
        ``[rows, heads * head_dim]`` in the compute dtype."""

    @abstractmethod
    def gated_silu(self, gate: Tensor, up: Tensor) -> Tensor:
        """``silu(gate) * up`` (Shazeer 2020), computed in float32 or better and rounded once."""

    @abstractmethod
    def route(self, x: Tensor, router: Tensor, top_k: int, normalise: bool) -> tuple[Tensor, Tensor]:
        """Softmax over all experts of ``x @ router.T`` in the residual dtype, the ``top_k`` largest of each row, divided
        by their sum if ``normalise`` (spec section 5). Returns weights and int64 ids, both ``[rows, top_k]``."""

    # Fused operations, defined by the primitives

    def linear_group(self, x: Tensor, weights: Sequence[Weight], biases: Sequence[Tensor | None]) -> list[Tensor]:
        """Several products of the same rows (q, k and v; gate and up)."""
        return [self.linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True)]

    def swiglu(self, x: Tensor, mlp: SwiGLU) -> Tensor:
        """The feed-forward layer ``[rows, hidden] -> [rows, hidden]``."""
        gate, up = self.linear_group(x, (mlp.gate_proj, mlp.up_proj), (None, None))
        return self.linear(self.gated_silu(gate, up), mlp.down_proj)

    def mixture(self, x: Tensor, weights: Tensor, ids: Tensor, experts: Sequence[SwiGLU]) -> Tensor:
        """``sum over chosen experts of weight * expert(x)``: ``[rows, hidden]`` in the residual dtype.

        Rows are gathered by expert, so that an expert no row chose is never run and its weights never read."""
        out = torch.zeros_like(x, dtype=self.precision.residual)
        for expert in ids.unique().tolist():
            rows, slot = torch.where(ids == expert)
            part = self.swiglu(x[rows], experts[expert])
            out.index_add_(0, rows, part.to(out.dtype) * weights[rows, slot, None])
        return out
