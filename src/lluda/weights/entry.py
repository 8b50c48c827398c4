"""One tensor as it lies on disk, and what every checkpoint reader offers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from lluda.weights.packed_bf16 import PackedMatrix


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies: name as the models use it, shape in torch order, storage type (``BF16``, ``Q8_0``,
    ``PACKED_BF16``, …), byte count, file and absolute byte offset in that file."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    file: Path
    offset: int


class Checkpoint(Protocol):
    """An opened checkpoint: headers are read and validated, tensor bytes are not touched until asked for."""

    path: Path
    """The folder or .gguf file it was opened from."""

    entries: Mapping[str, TensorEntry]
    """All tensors by name, in file order."""

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor's values: zero-copy over the memory map for plain float types, decoded to float32 for block
        formats and to BF16 for packed BF16. KeyError for a name that is not in ``entries``; CorruptFile if the file
        changed since it was opened."""

    def packed(self, name: str) -> PackedMatrix | None:
        """The tensor in packed BF16, zero-copy; None if it is not stored so. Errors as `tensor`."""

    def q8_0(self, name: str) -> torch.Tensor | None:
        """The tensor's Q8_0 blocks as they lie, uint8 ``[*shape[:-1], columns / 32 * 34]``; None if it is not stored
        so. Errors as `tensor`."""

    def release(self, name: str) -> None:
        """Let go of the memory behind a tensor that will not be read again (it is read anew if it is)."""

    def check_unchanged(self) -> None:
        """CorruptFile if a file was changed or replaced since it was opened."""

    def close(self) -> None:
        """Drop the maps. Tensors still alive keep theirs."""
