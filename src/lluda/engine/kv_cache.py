"""One sequence's keys and values in the layout attention reads: ``[layers, kv_heads, capacity, head_dim]``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lluda.backends.batch import RowsElsewhere
from lluda.config.decoder import DecoderConfig
from lluda.errors import InvalidRequest, LimitExceeded

Strategy = Literal["growing", "preallocated"]
STRATEGIES: tuple[Strategy, ...] = ("growing", "preallocated")
STORAGE_DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32, "f64": torch.float64}

_FIRST_CAPACITY = 256


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """``growing`` starts small and doubles, ``preallocated`` takes ``max_length`` positions at once; ``dtype`` is the
    storage (bf16 halves the memory of f32; keys and values are rounded once when stored)."""

    max_length: int
    strategy: Strategy = "growing"
    dtype: str = "bf16"

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise InvalidRequest(f"kv_cache {self.strategy!r} is not one of {', '.join(STRATEGIES)}")
        if self.dtype not in STORAGE_DTYPES:
            raise InvalidRequest(f"kv_dtype {self.dtype!r} is not one of {', '.join(STORAGE_DTYPES)}")

    def bytes_for(self, config: DecoderConfig, positions: int) -> int:
        """Bytes that ``positions`` stored positions take."""
        return positions * config.kv_elements_per_token * STORAGE_DTYPES[self.dtype].itemsize


class KVCache:
    """Implements ``backends.batch.KeyValueStore`` for one sequence."""

    def __init__(
        self, config: DecoderConfig, options: CacheOptions, device: torch.device, capacity: int | None = None
    ) -> None:
        """``capacity``: positions to take memory for at once, where it is known how many there will be."""
        self.options = options
        self.length = 0
        self.elsewhere: RowsElsewhere | None = None
        self.position_offset: int | float = 0
        """Position of the next row, less ``length``: media take fewer or more positions than rows."""
        self._layers = config.num_hidden_layers
        self._heads, self._head_dim = config.num_key_value_heads, config.head_dim
        self._device = device
        first = options.max_length
        if options.strategy == "growing":
            first = min(capacity or _FIRST_CAPACITY, options.max_length)
        self._keys, self._values = self._allocate(first), self._allocate(first)

    @property
    def capacity(self) -> int:
        """Positions there is memory for."""
        return self._keys.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return self._keys.nbytes + self._values.nbytes

    def reserve(self, rows: int) -> tuple[Tensor, Tensor]:
        """See ``KeyValueStore.reserve``. LimitExceeded past ``max_length``."""
        needed = self.length + rows
        if needed > self.options.max_length:
            raise LimitExceeded(
                f"the KV cache holds {self.options.max_length} positions but {needed} are needed; "
                "load with a larger max_context"
            )
        if needed > self.capacity:
            grown = min(max(needed, 2 * self.capacity), self.options.max_length)
            self._keys, self._values = self._grow(self._keys, grown), self._grow(self._values, grown)
        return self._keys, self._values

    def advance(self, rows: int) -> None:
        """Count ``rows`` positions that every layer has stored."""
        self.length += rows

    def truncate(self, length: int) -> None:
        """Forget all but the first ``length`` positions."""
        assert 0 <= length <= self.length, f"cannot keep {length} of {self.length} positions"
        self.length = length

    def copy_rows(self, other: KVCache, rows: int) -> None:
        """Hold the first ``rows`` positions of another cache of the same shape, of which it holds its own first ones
        already; the caller knows that these are equal."""
        start = self.length
        assert start <= rows <= other.length, f"{rows} of {other.length} positions behind {start}"
        if other.elsewhere is not None:
            other.elsewhere.settle(other)
        if self.elsewhere is not None:
            self.elsewhere.wrote(self)
        keys, values = self.reserve(rows - start)
        keys[:, :, start:rows] = other._keys[:, :, start:rows]
        values[:, :, start:rows] = other._values[:, :, start:rows]
        self.length = rows

    def _allocate(self, capacity: int) -> Tensor:
        shape = (self._layers, self._heads, capacity, self._head_dim)
        return torch.empty(shape, dtype=STORAGE_DTYPES[self.options.dtype], device=self._device)

    def _grow(self, old: Tensor, capacity: int) -> Tensor:
        new = self._allocate(capacity)
        new[:, :, : self.length] = old[:, :, : self.length]
        return new
