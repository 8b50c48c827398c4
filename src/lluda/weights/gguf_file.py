"""One opened GGUF file, with its own tensor names.

Values. F32, F16 and BF16 are views of the memory map. Q8_0 is decoded here: blocks of a float16 scale d and 32 int8 q,
value = d·q in float32, where every such product is exact (11 + 8 bits of significand fit 24), so the bits never depend
on the machine. That also defines odd blocks: a subnormal or negative scale and q = -128 multiply like any other, a NaN
scale gives 32 NaN, an infinite one ±infinity and, where q = 0, NaN. All other block formats are decoded by the ``gguf``
package of the ggml project. A tensor with NaN or infinity is found by the loader's check of tensors, not here.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from copy import copy
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from lluda.errors import CorruptFile, UnsupportedModel
from lluda.files.foreign_content import foreign_content
from lluda.files.gguf_keys import GGUFKeys
from lluda.files.mapped_file import MappedFile
from lluda.weights.entry import TensorEntry
from lluda.weights.gguf_header import STORAGE_TYPES, read_header, read_value

if TYPE_CHECKING:
    import torch

SMALLEST_FILE = 24
_PLAIN = {"F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2)}
_ROW_BYTES = {name: (block, block_bytes) for name, block, block_bytes in STORAGE_TYPES.values()}


class GGUFFile:
    """One opened file: the head is validated, no tensor byte is read. Implements `Checkpoint` with the file's names.

    Listing needs no torch. ``version``, ``alignment`` and ``metadata`` are as `GGUFHeader` has them.
    """

    def __init__(self, path: Path) -> None:
        """Open ``path`` and check its head. CorruptFile: a rule broken; ModelNotFound: absent or not permitted."""
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
        """The same file opened once more, its head not read again. CorruptFile: it changed since it was first."""
        other = copy(self)
        other._file = MappedFile(self.path)
        self._file.check_unchanged()
        return other

    def encoded_key(self, key: str) -> bytes:
        """A metadata key with its value as they are stored, types and all."""
        start, end = self._spans[key]
        return bytes(self._file.read(start, end - start))

    def tensor(self, name: str) -> torch.Tensor:
        """The values of ``name`` in torch order: as stored and zero-copy for F32, F16, BF16 (a copy where the offset is
        not a multiple of the item), decoded to a new float32 tensor for block formats.

        KeyError: no such tensor. CorruptFile: the file changed since it was opened. UnsupportedModel: a type that
        neither lluda nor the installed ``gguf`` package decodes.
        """
        return self.values_of(self.entries[name])

    def raw(self, name: str) -> torch.Tensor:
        """The stored bytes of ``name``, zero-copy: uint8 [*shape[:-1], bytes of a row]. Errors as `tensor`."""
        return self.bytes_of(self.entries[name])

    def values_of(self, entry: TensorEntry, heads: int = 0) -> torch.Tensor:
        """As `tensor`, for an entry that lies in this file, such as one expert; ``heads`` as in `bytes_of`."""
        if entry.dtype in _PLAIN:
            import torch

            name, item = _PLAIN[entry.dtype]
            dtype: torch.dtype = getattr(torch, name)
            if entry.offset % item == 0:
                return self.bytes_of(entry, heads).view(dtype)
            self._file.check_unchanged()
            copy = torch.frombuffer(self._file.read(entry.offset, entry.nbytes), dtype=dtype).view(entry.shape)
            return _half_split(copy, heads, entry)
        stored = self.bytes_of(entry, heads)
        values = _decode_q8_0(stored) if entry.dtype == "Q8_0" else _decode_by_gguf(stored, entry)
        self._file.check_unchanged()
        return values

    def bytes_of(self, entry: TensorEntry, heads: int = 0) -> torch.Tensor:
        """As `raw`, for an entry that lies in this file. With ``heads``, the rows of each head are put from the
        interleaved into the half-split rotary order (a copy); rows are whole blocks, so this suits every type."""
        import torch

        self._file.check_unchanged()
        block, block_bytes = _ROW_BYTES[entry.dtype]
        stored = torch.frombuffer(self._file.map(), dtype=torch.uint8, count=entry.nbytes, offset=entry.offset)
        if not heads:
            return stored.view(*entry.shape[:-1], entry.shape[-1] // block * block_bytes)
        row_bytes = entry.nbytes // entry.shape[0]
        rows = _half_split(stored.view(entry.shape[0], row_bytes), heads, entry)
        return rows.view(*entry.shape[:-1], -1)

    def packed(self, name: str) -> None:
        """GGUF files hold no packed BF16."""

    def q8_0(self, name: str) -> torch.Tensor | None:
        """As `raw` for a tensor of Q8_0 blocks, else None."""
        return self.raw(name) if self.entries[name].dtype == "Q8_0" else None

    def release(self, name: str) -> None:
        """Let go of the memory behind the tensor ``name``, as `MappedFile.release`."""
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
    if not heads:
        return rows
    if rows.shape[0] % (2 * heads):
        rule = f"tensor {entry.name!r}: its rows must be a multiple of twice the heads, {heads}"
        raise CorruptFile(entry.file, rule, found=rows.shape[0])
    return rows.view(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _decode_q8_0(stored: torch.Tensor) -> torch.Tensor:
    import torch

    blocks = stored.view(*stored.shape[:-1], -1, 34)
    scales = blocks[..., :2].contiguous().view(torch.float16).float()
    values = torch.empty((*blocks.shape[:-1], 32), dtype=torch.float32)
    torch.mul(blocks[..., 2:].view(torch.int8), scales, out=values)
    return values.flatten(-2)


def _decode_by_gguf(stored: torch.Tensor, entry: TensorEntry) -> torch.Tensor:
    import numpy as np
    import torch
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    try:
        with np.errstate(all="ignore"):  # NaN and infinite scales are data
            return torch.from_numpy(dequantize(stored.numpy(), GGMLQuantizationType[entry.dtype]))
    except (KeyError, NotImplementedError) as error:
        raise UnsupportedModel(
            f"{entry.file}: tensor {entry.name!r} is stored as {entry.dtype}, which neither lluda nor the installed "
            "gguf package decodes; quantise the model as Q8_0 or another common type"
        ) from error
