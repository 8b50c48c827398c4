"""One sequence's keys and values, layer by layer, in the layout attention reads: ``[kv_heads, capacity, head_dim]``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lluda.config import DecoderConfig
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
    """Implements ``backends.base.KeyValueStore`` for one sequence."""

    def __init__(self, config: DecoderConfig, options: CacheOptions, device: torch.device) -> None:
        self.options = options
        self.length = 0
        self._shape = (config.num_key_value_heads, config.head_dim)
        self._device = device
        first = options.max_length if options.strategy == "preallocated" else min(_FIRST_CAPACITY, options.max_length)
        self._keys = [self._room(first) for _ in range(config.num_hidden_layers)]
        self._values = [self._room(first) for _ in range(config.num_hidden_layers)]

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(tensor.nbytes for tensor in (*self._keys, *self._values))

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """See ``KeyValueStore.append``. LimitExceeded past ``max_length``."""
        end = self.length + keys.shape[0]
        self.reserve(layer, end)
        self._keys[layer][:, self.length : end] = keys.transpose(0, 1)
        self._values[layer][:, self.length : end] = values.transpose(0, 1)
        return self._keys[layer][:, :end], self._values[layer][:, :end]

    def reserve(self, layer: int, positions: int) -> None:
        """Make room for ``positions`` in all in one layer, keeping what is stored."""
        if positions > self.options.max_length:
            raise LimitExceeded(
                f"the KV cache holds {self.options.max_length} positions but {positions} are needed; "
                "load with a larger max_context"
            )
        capacity = self._keys[layer].shape[1]
        if positions > capacity:
            grown = min(max(positions, 2 * capacity), self.options.max_length)
            self._keys[layer] = self._grow(self._keys[layer], grown)
            self._values[layer] = self._grow(self._values[layer], grown)

    def advance(self, rows: int) -> None:
        """Count ``rows`` positions that every layer has stored."""
        self.length += rows

    def truncate(self, length: int) -> None:
        """Forget all but the first ``length`` positions."""
        assert 0 <= length <= self.length, f"cannot keep {length} of {self.length} positions"
        self.length = length

    def _room(self, capacity: int) -> Tensor:
        heads, head_dim = self._shape
        return torch.empty(heads, capacity, head_dim, dtype=STORAGE_DTYPES[self.options.dtype], device=self._device)

    def _grow(self, old: Tensor, capacity: int) -> Tensor:
        new = self._room(capacity)
        new[:, : self.length] = old[:, : self.length]
        return new
