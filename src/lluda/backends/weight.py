"""Matrices as a backend holds them, and the parameters that a model is built from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Weight(Protocol):
    """A matrix ``[out_features, in_features]`` in some format. Only backends look inside."""

    @property
    def format(self) -> str:
        """Storage format: ``BF16``, ``F32``, …"""

    @property
    def out_features(self) -> int:
        """Rows: width of the product."""

    @property
    def in_features(self) -> int:
        """Columns: width of the rows it multiplies."""

    @property
    def nbytes(self) -> int:
        """Bytes that one product reads."""


@dataclass(frozen=True, slots=True, eq=False)
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

    @property
    def nbytes(self) -> int:
        """Bytes that one product reads."""
        return self.values.nbytes


@dataclass(frozen=True, slots=True)
class Parameters:
    """What a model is built from, by checkpoint name: matrices in their formats, vectors in the residual dtype."""

    values: Mapping[str, Weight | Tensor]

    def matrix(self, name: str) -> Weight:
        """A matrix or embedding table."""
        value = self.values[name]
        assert not isinstance(value, Tensor), f"{name} was loaded as a vector"
        return value

    def vector(self, name: str) -> Tensor:
        """A norm, bias, scale or router."""
        value = self.values[name]
        assert isinstance(value, Tensor), f"{name} was loaded as a matrix"
        return value
