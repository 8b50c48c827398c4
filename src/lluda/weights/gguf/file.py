"""One opened GGUF file, with its own tensor names. The meaning of its bytes: `lluda.formats`."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from lluda.errors import CorruptFile
from lluda.files.foreign_content import foreign_content
from lluda.files.gguf_keys import GGUFKeys
from lluda.files.mapped_file import MappedFile
from lluda.formats.stored_tensor import StoredTensor
from lluda.weights.entry import TensorEntry
from lluda.weights.gguf.header import read_header, read_value
from lluda.weights.mapped_tensor import mapped_tensor

if TYPE_CHECKING:
    import torch

SMALLEST_FILE = 24


class GGUFFile:
    """One opened file: the header is validated, no tensor byte is read. Implements `Checkpoint` with the file's names.

    Listing needs no torch. ``version``, ``alignment`` and ``metadata`` are as `GGUFHeader` has them.
    """

    def __init__(self, path: Path) -> None:
        """Open ``path`` and check its header. CorruptFile: a rule broken; ModelNotFound: absent or not permitted."""
        self.path = path
        self._file = MappedFile(path)
        try:
            if self._file.size < SMALLEST_FILE:
                sample = self._file.read(0, self._file.size)
                foreign = None if sample.startswith(b"GGUF") else foreign_content(sample, self._file.size)
                rule = foreign or "too short for a GGUF file; download it again"
                raise CorruptFile(path, rule, expected=f"at least {SMALLEST_FILE} bytes", found=self._file.size)
            header = read_header(self._file.map(), self._file.size, path)
        except BaseException:
            self._file.close()
            raise
        self.version = header.version
        self.alignment = header.alignment
        self.metadata = GGUFKeys(header.metadata, path, partial(_read_again, self._file, header.spans))
        self.entries: Mapping[str, TensorEntry] = header.entries
        self._spans = header.spans

    def again(self) -> GGUFFile:
        """The same file opened once more, its header not read again. CorruptFile: it changed since it was first."""
        other = copy(self)
        other._file = MappedFile(self.path)
        self._file.check_unchanged()
        return other

    def encoded_key(self, key: str) -> bytes:
        """A metadata key with its value as they are stored, types and all."""
        start, end = self._spans[key]
        return bytes(self._file.read(start, end - start))

    def stored(self, name: str) -> StoredTensor:
        """The tensor ``name`` as it lies, see `Checkpoint.stored`."""
        return self.stored_at(self.entries[name])

    def stored_at(self, entry: TensorEntry, heads: int = 0) -> StoredTensor:
        """As `stored`, for an entry that lies in this file, such as one expert. With ``heads``, the rows of each head
        are put from the interleaved into the half-split rotary order (a copy); rows are whole blocks, so this suits
        every format."""
        stored = mapped_tensor(self._file, entry)
        if not heads:
            return stored
        rows = stored.data.view(entry.shape[0], -1)
        return replace(stored, data=_half_split(rows, heads, entry).view(-1))

    def tensor(self, name: str) -> torch.Tensor:
        """The values of ``name`` in torch order, see `Checkpoint.tensor`: zero-copy for plain numbers that are aligned,
        a new float32 tensor for blocks."""
        values = self.stored(name).decode()
        self._file.check_unchanged()
        return values

    def release(self, name: str) -> None:
        """Release the memory behind the tensor ``name``, as `MappedFile.release`."""
        self.release_entry(self.entries[name])

    def release_entry(self, entry: TensorEntry) -> None:
        """As `release`, for an entry that lies in this file."""
        self._file.release(entry.offset, entry.nbytes)

    def check_unchanged(self) -> None:
        """CorruptFile if the file changed since it was opened; call it after the last use of mapped tensors' bytes."""
        self._file.check_unchanged()

    def close(self) -> None:
        """Close the file. Tensors still alive keep the map; asking for more is an error. May be called twice."""
        self._file.close()

    def floats(self, name: str) -> tuple[float, ...]:
        """The values of a small F32 tensor, without torch. CorruptFile if it has another type."""
        entry = self.entries[name]
        if entry.dtype != "F32":
            raise CorruptFile(self.path, f"tensor {name!r} must be F32", found=entry.dtype)
        return struct.unpack(f"<{entry.nbytes // 4}f", self._file.read(entry.offset, entry.nbytes))

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _read_again(file: MappedFile, spans: Mapping[str, tuple[int, int]], key: str) -> Any:
    file.check_unchanged()
    return read_value(file.map(), spans[key], file.path)


def _half_split(rows: torch.Tensor, heads: int, entry: TensorEntry) -> torch.Tensor:
    """Rows (or elements of a bias) of each head from rotary pairs (0, 1), (2, 3), … to pairs half a head apart:
    row 2i+j of a head becomes row j·d/2 + i."""
    if rows.shape[0] % (2 * heads):
        rule = f"tensor {entry.name!r}: its rows must be a multiple of twice the heads, {heads}"
        raise CorruptFile(entry.file, rule, found=rows.shape[0])
    return rows.view(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)
