"""From a tensor's entry to its bytes in the memory map, as what their format says they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lluda.errors import CorruptFile, UnsupportedModel
from lluda.files.mapped_file import MappedFile
from lluda.formats.registry import FORMATS
from lluda.formats.stored_tensor import StoredTensor
from lluda.weights.entry import TensorEntry

if TYPE_CHECKING:
    import torch


def mapped_tensor(file: MappedFile, entry: TensorEntry) -> StoredTensor:
    """The tensor of ``entry`` in ``file``, zero-copy. Reads no more than its format's rules ask for.

    Writing to it changes this process's copy of the pages, never the file. CorruptFile: a rule of its format broken, or
    the file changed since it was opened. UnsupportedModel: a format that lluda does not have.
    """
    found = FORMATS.get(entry.dtype)
    if found is None:
        raise UnsupportedModel(
            f"{entry.file}: tensor {entry.name!r} is stored as {entry.dtype}, which lluda does not read; "
            f"it reads {', '.join(FORMATS)}"
        )
    file.check_unchanged()
    where = f"{entry.file}: tensor {entry.name[:120]!r}"
    stored = StoredTensor(found, entry.shape, _mapped_bytes(file, entry), where)
    broken = next(found.violations(stored), None)
    if broken is not None:
        rule = f"{entry.dtype} tensor {entry.name[:120]!r}: {broken.rule}; download or write it again"
        raise CorruptFile(entry.file, rule, expected=broken.expected, found=broken.found)
    return stored


def _mapped_bytes(file: MappedFile, entry: TensorEntry) -> torch.Tensor:
    import torch

    if entry.nbytes == 0:
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer(file.map(), dtype=torch.uint8, count=entry.nbytes, offset=entry.offset)
