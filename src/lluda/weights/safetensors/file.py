"""One safetensors file: its tensors are views of a private memory map, made only when asked for."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from lluda.errors import CorruptFile
from lluda.files.foreign_content import SAMPLE_BYTES, foreign_content
from lluda.files.mapped_file import MappedFile
from lluda.formats.stored_tensor import StoredTensor
from lluda.weights.entry import TensorEntry
from lluda.weights.mapped_tensor import mapped_tensor
from lluda.weights.safetensors.declared_formats import with_declared_formats
from lluda.weights.safetensors.header import LENGTH_BYTES, MAX_HEADER_BYTES, read_header

if TYPE_CHECKING:
    import torch


class SafetensorsFile:
    """An opened file: the header is validated, no tensor byte is read. Implements `Checkpoint` for a lone file.

    Listing needs no torch. ``metadata`` is the header's ``__metadata__``.
    """

    def __init__(self, path: Path) -> None:
        """Open ``path`` and check its header. CorruptFile: a rule broken; ModelNotFound: absent or not permitted."""
        self.path = path
        self._file = MappedFile(path)
        try:
            stored, metadata = _read_header(self._file)
            entries = with_declared_formats(stored, metadata, path)
        except BaseException:
            self._file.close()
            raise
        self.entries: Mapping[str, TensorEntry] = entries
        """Tensors of declared formats have their matrix's shape, and the bytes they take in the file."""
        self.metadata: Mapping[str, str] = metadata

    def again(self) -> SafetensorsFile:
        """The same file opened once more, its header not read again. CorruptFile: it changed since it was first."""
        other = copy(self)
        other._file = MappedFile(self.path)
        self._file.check_unchanged()
        return other

    def stored(self, name: str) -> StoredTensor:
        """The tensor ``name`` as it lies, see `Checkpoint.stored`."""
        return self.stored_at(self.entries[name])

    def stored_at(self, entry: TensorEntry) -> StoredTensor:
        """As `stored`, for an entry of this file."""
        return mapped_tensor(self._file, entry)

    def tensor(self, name: str) -> torch.Tensor:
        """The values of ``name``, see `Checkpoint.tensor`: zero-copy for plain numbers that are aligned."""
        return self.stored(name).decode()

    def release(self, name: str) -> None:
        """Release the memory behind the tensor ``name``, as `MappedFile.release`."""
        self._file.release(self.entries[name].offset, self.entries[name].nbytes)

    def check_unchanged(self) -> None:
        """CorruptFile if the file changed since it was opened; call it after the last use of mapped tensors' bytes."""
        self._file.check_unchanged()

    def close(self) -> None:
        """Close the file. Tensors still alive keep the map; asking for more is an error. May be called twice."""
        self._file.close()

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _read_header(file: MappedFile) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    sample = file.read(0, min(file.size, SAMPLE_BYTES))
    length = int.from_bytes(sample[:LENGTH_BYTES], "little")
    is_own = sample[LENGTH_BYTES : LENGTH_BYTES + 1] == b"{"
    if not is_own and (foreign := foreign_content(sample, file.size)):
        raise CorruptFile(file.path, foreign)
    if file.size < LENGTH_BYTES:
        raise CorruptFile(
            file.path, "too short for a safetensors file", expected=f"at least {LENGTH_BYTES} bytes", found=file.size
        )
    if length > MAX_HEADER_BYTES:
        raise CorruptFile(
            file.path, "the header's length is over the limit", expected=f"at most {MAX_HEADER_BYTES}", found=length
        )
    if LENGTH_BYTES + length > file.size:
        rule = "the header is longer than the file; download or write it again"
        raise CorruptFile(file.path, rule, expected=f"{LENGTH_BYTES + length} bytes", found=file.size)
    return read_header(file.read(LENGTH_BYTES, length), file.path, file.size)
