"""A tensor as it lies in a file or in memory: what its bytes mean, its shape, and the bytes where they are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lluda.formats.format import Format

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, eq=False)
class StoredTensor:
    """``shape`` is that of the values, in torch order; ``data`` are the bytes (uint8 ``[n]``, contiguous), usually a
    view of a file's memory map; ``where`` is what errors call it: its file and name."""

    format: Format
    shape: tuple[int, ...]
    data: torch.Tensor
    where: str = "the tensor"

    @property
    def nbytes(self) -> int:
        """Bytes as stored."""
        return self.data.numel()

    def decode(self) -> torch.Tensor:
        """The values: a view of the bytes for plain numbers, else made anew, see `Format.decode`."""
        return self.format.decode(self)

    def surely_finite(self) -> bool:
        """See `Format.surely_finite`."""
        return self.format.surely_finite(self)

    def to(self, device: torch.device) -> StoredTensor:
        """The same bytes on ``device``; itself if they are there."""
        data = self.data.to(device)
        return self if data is self.data else replace(self, data=data)

    def is_read_by(self, values: torch.Tensor) -> bool:
        """Whether ``values`` (or a weight's memory) are a view of these bytes from the first on."""
        return values.device == self.data.device and values.data_ptr() == self.data.data_ptr()
