"""One tensor as it lies on disk, and what every checkpoint reader offers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from lluda.formats.stored_tensor import StoredTensor

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies: name as the models use it, shape in torch order, name of its format (`lluda.formats`),
    byte count, file and absolute byte offset in that file."""

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

    def stored(self, name: str) -> StoredTensor:
        """The tensor as it lies in the memory map, zero-copy. KeyError: a name that is not in ``entries``. CorruptFile:
        a rule of its format broken, or the file changed since it was opened. UnsupportedModel: a format that lluda
        does not have."""

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor's values, see `StoredTensor.decode`. Errors as `stored`; UnsupportedModel also for a format that
        nothing here decodes."""

    def release(self, name: str) -> None:
        """Release the memory behind a tensor that will not be read again (it is read anew if it is)."""

    def check_unchanged(self) -> None:
        """CorruptFile if a file was changed or replaced since it was opened."""

    def close(self) -> None:
        """Drop the maps. Tensors still alive keep theirs."""
