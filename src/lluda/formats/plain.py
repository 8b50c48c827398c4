"""Plain numbers, value after value, little-endian: the dtypes that torch holds, by the names safetensors and GGUF have
for them. BF16 is the upper half of float32; encoding rounds to nearest even."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lluda.formats.format import BlockFormat, Violation
from lluda.formats.stored_tensor import StoredTensor

if TYPE_CHECKING:
    import torch


class PlainFormat(BlockFormat):
    """Numbers of one torch dtype."""

    is_plain = True

    def __init__(self, name: str, torch_name: str, item_bytes: int, *, holds_weights: bool = False) -> None:
        super().__init__(name, 1, item_bytes)
        self._torch_name = torch_name
        self.values_as = name
        self.holds_weights = holds_weights

    @property
    def dtype(self) -> torch.dtype:
        """The torch dtype."""
        import torch

        dtype: torch.dtype = getattr(torch, self._torch_name)
        return dtype

    def decode(self, stored: StoredTensor) -> torch.Tensor:
        """A view of the bytes; a copy where they begin between two items."""
        data = stored.data.clone() if stored.data.data_ptr() % self.block_bytes else stored.data
        return data.view(self.dtype).view(stored.shape)

    def encode(self, values: torch.Tensor) -> torch.Tensor:
        """Rounded to nearest even; what is too large becomes infinity."""
        return bytes_of(values.to(self.dtype))

    def violations(self, stored: StoredTensor) -> Iterator[Violation]:
        """Also that a truth value is one."""
        yield from super().violations(stored)
        # Any other byte is undefined behaviour in torch's kernels.
        if self.name == "BOOL" and stored.nbytes and (largest := int(stored.data.max())) > 1:
            yield Violation("a BOOL byte must be 0 or 1", "0 or 1", largest)


F64 = PlainFormat("F64", "float64", 8, holds_weights=True)
F32 = PlainFormat("F32", "float32", 4, holds_weights=True)
F16 = PlainFormat("F16", "float16", 2, holds_weights=True)
BF16 = PlainFormat("BF16", "bfloat16", 2, holds_weights=True)

PLAIN_FORMATS = (
    PlainFormat("BOOL", "bool", 1),
    PlainFormat("U8", "uint8", 1),
    PlainFormat("I8", "int8", 1),
    PlainFormat("F8_E5M2", "float8_e5m2", 1),
    PlainFormat("F8_E4M3", "float8_e4m3fn", 1),
    PlainFormat("F8_E8M0", "float8_e8m0fnu", 1),
    PlainFormat("F8_E4M3FNUZ", "float8_e4m3fnuz", 1),
    PlainFormat("F8_E5M2FNUZ", "float8_e5m2fnuz", 1),
    PlainFormat("I16", "int16", 2),
    PlainFormat("U16", "uint16", 2),
    F16,
    BF16,
    PlainFormat("I32", "int32", 4),
    PlainFormat("U32", "uint32", 4),
    F32,
    PlainFormat("C64", "complex64", 8),
    F64,
    PlainFormat("I64", "int64", 8),
    PlainFormat("U64", "uint64", 8),
)


def plain_format(dtype: torch.dtype) -> PlainFormat:
    """The format of a torch dtype, which must be one of `PLAIN_FORMATS`."""
    return next(one for one in PLAIN_FORMATS if one.dtype is dtype)


def plain_tensor(values: torch.Tensor) -> StoredTensor:
    """``values`` as a stored tensor of their dtype's format, of the same memory if they are contiguous."""
    return StoredTensor(plain_format(values.dtype), tuple(values.shape), bytes_of(values))


def bytes_of(values: torch.Tensor) -> torch.Tensor:
    """The bytes of ``values``, uint8 ``[n]``, of the same memory if they are contiguous."""
    import torch

    return values.contiguous().reshape(-1).view(torch.uint8)
