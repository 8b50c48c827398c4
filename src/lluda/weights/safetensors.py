"""One safetensors file: its tensors are views of a private memory map, made only when asked for."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from lluda.errors import CorruptFile, UnsupportedModel
from lluda.files.foreign_content import SAMPLE_BYTES, foreign_content
from lluda.files.mapped_file import MappedFile
from lluda.weights.entry import TensorEntry
from lluda.weights.packed_bf16 import DTYPE, PackedMatrix, packed_matrix, with_packed_shapes
from lluda.weights.safetensors_header import LENGTH_BYTES, MAX_HEADER_BYTES, read_header

if TYPE_CHECKING:
    import torch

_TORCH_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "C64": "complex64",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
}


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
            entries = with_packed_shapes(stored, metadata, path)
        except BaseException:
            self._file.close()
            raise
        self.entries: Mapping[str, TensorEntry] = entries
        """Packed tensors (`packed_bf16`) have their matrix's shape, and the bytes they take in the file."""
        self.metadata: Mapping[str, str] = metadata

    def again(self) -> SafetensorsFile:
        """The same file opened once more, its header not read again. CorruptFile: it changed since it was first."""
        other = copy(self)
        other._file = MappedFile(self.path)
        self._file.check_unchanged()
        return other

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor ``name``, as `values_of` its entry. KeyError: no such tensor."""
        return self.values_of(self.entries[name])

    def values_of(self, entry: TensorEntry) -> torch.Tensor:
        """A tensor of this file with its stored dtype and shape, zero-copy; a copy where its offset is misaligned, and
        of a packed one its BF16 values.

        Writing to it changes this process's copy of the pages, never the file. CorruptFile: the file changed since it
        was opened (see `mapped_file` for what cannot be seen), or a BOOL that is neither 0 nor 1. UnsupportedModel: F4
        and F6, which torch cannot hold value by value.
        """
        import torch

        if entry.dtype == DTYPE:
            return self._packed(entry).unpacked()
        if entry.dtype not in _TORCH_NAMES:
            raise UnsupportedModel(
                f"{self.path}: tensor {entry.name!r} is stored as {entry.dtype}, which lluda does not read; "
                f"it reads {', '.join(_TORCH_NAMES)}"
            )
        self._file.check_unchanged()
        dtype: torch.dtype = getattr(torch, _TORCH_NAMES[entry.dtype])
        if entry.nbytes == 0:
            return torch.empty(entry.shape, dtype=dtype)
        if entry.dtype == "BOOL":
            self._check_bool(entry)
        count = entry.nbytes // dtype.itemsize
        if entry.offset % dtype.itemsize:
            copy = self._file.read(entry.offset, entry.nbytes)
            return torch.frombuffer(copy, dtype=dtype, count=count).view(entry.shape)
        return torch.frombuffer(self._file.map(), dtype=dtype, count=count, offset=entry.offset).view(entry.shape)

    def q8_0(self, name: str) -> None:
        """Safetensors hold no Q8_0."""

    def packed(self, name: str) -> PackedMatrix | None:
        """The tensor ``name`` in packed form, checked, its bytes zero-copy; None if it is not stored so. Errors as
        `tensor`."""
        entry = self.entries[name]
        return self._packed(entry) if entry.dtype == DTYPE else None

    def release(self, name: str) -> None:
        """Let go of the memory behind the tensor ``name``, as `MappedFile.release`."""
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

    def _packed(self, entry: TensorEntry) -> PackedMatrix:
        import torch

        self._file.check_unchanged()
        stored = torch.frombuffer(self._file.map(), dtype=torch.uint8, count=entry.nbytes, offset=entry.offset)
        return packed_matrix(stored, entry)

    def _check_bool(self, entry: TensorEntry) -> None:
        # Any other byte is undefined behaviour in torch's kernels.
        import torch

        values = torch.frombuffer(self._file.map(), dtype=torch.uint8, count=entry.nbytes, offset=entry.offset)
        largest = int(values.max())
        if largest > 1:
            raise CorruptFile(
                self.path, f"tensor {entry.name!r}: a BOOL byte must be 0 or 1", expected="0 or 1", found=largest
            )


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
