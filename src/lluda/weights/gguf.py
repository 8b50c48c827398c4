"""GGUF files: one opened file with its own tensor names, and a checkpoint (one file or a split set) with the names the
models use.

Values. F32, F16 and BF16 are views of the memory map. Q8_0 is decoded here: blocks of a float16 scale d and 32 int8 q,
value = d·q in float32, where every such product is exact (11 + 8 bits of significand fit 24), so the bits never depend
on the machine. That also defines odd blocks: a subnormal or negative scale and q = -128 multiply like any other, a NaN
scale gives 32 NaN, an infinite one ±infinity and, where q = 0, NaN. All other block formats are decoded by the ``gguf``
package of the ggml project. A tensor with NaN or infinity is found by the loader's check of tensors, not here.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from copy import copy
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from lluda.errors import CorruptFile, ModelNotFound, UnsupportedModel
from lluda.gguf_keys import GGUFKeys, described, same_value
from lluda.mapped_file import MappedFile
from lluda.weights.entry import TensorEntry
from lluda.weights.gguf_header import STORAGE_TYPES, read_header, read_value
from lluda.weights.gguf_names import (
    ROPE_FACTORS,
    config_from_metadata,
    hugging_face_entries,
    interleaved_heads,
)
from lluda.weights.gguf_omni import ARCHITECTURE as OMNI
from lluda.weights.gguf_omni import omni_config, omni_entries

if TYPE_CHECKING:
    import torch

SMALLEST_FILE = 24
_PLAIN = {"F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2)}
_ROW_BYTES = {name: (block, block_bytes) for name, block, block_bytes in STORAGE_TYPES.values()}
_PART_NAME = re.compile(
    r"(?P<stem>.+)-(?P<number>\d{5})(?P<of>-of-)(?P<count>\d{5})(?P<suffix>\.gguf)", re.DOTALL | re.IGNORECASE
)
_MAX_PARTS = 99999


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
                rule = "too short for a GGUF file"
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


class GGUFCheckpoint:
    """A GGUF model under the names the models use (`gguf_names`): implements `Checkpoint`.

    ``metadata`` is that of the first part, ``config`` the Hugging Face config that follows from it, ``files`` the
    opened parts. Expert matrices, stored as one block of all experts, are entries of their own. Tensors that have no
    name there keep their own, for the loader to report. ``dtype`` of an entry is how it is stored.
    """

    def __init__(self, path: Path) -> None:
        """Open ``path``: a .gguf file, or the first of a split set (``name-00001-of-00003.gguf``), which opens all.

        CorruptFile: a rule broken, or a set that is incomplete or mixed. ModelNotFound: absent or not permitted.
        UnsupportedModel: an architecture, or a feature of one, that lluda does not have.
        """
        self.path = path
        self.files = _open_parts(path)
        try:
            self.metadata = self.files[0].metadata
            stored = _all_entries(self.files)
            self._by_path = {file.path: file for file in self.files}
            self.config: dict[str, Any]
            self.entries: Mapping[str, TensorEntry]
            if self.metadata.text("general.architecture") == OMNI:
                self.config = omni_config(self.metadata, path)
                self.entries = omni_entries(stored, self.metadata, path)
            else:
                self.config = config_from_metadata(self.metadata, path, tensors=stored)
                self._drop_rope_factors(stored)
                self.entries = hugging_face_entries(stored, self.config, path)
        except BaseException:
            self.close()
            raise

    def again(self) -> GGUFCheckpoint:
        """The same files opened once more, for a user who closes them; nothing is parsed again. CorruptFile: one of
        them changed since it was first opened."""
        other = copy(self)
        other.files = tuple(file.again() for file in self.files)
        other._by_path = {file.path: file for file in other.files}
        return other

    def tensor(self, name: str) -> torch.Tensor:
        """The values of ``name``, as `GGUFFile.tensor`. The query and key rows of a llama file lie interleaved and are
        put into the half-split order, which is a copy."""
        entry = self.entries[name]
        return self._by_path[entry.file].values_of(entry, interleaved_heads(name, self.config))

    def raw(self, name: str) -> torch.Tensor:
        """The stored bytes of ``name``: uint8 [*shape[:-1], bytes of a row], zero-copy but for the reordered query and
        key rows of a llama file (see `tensor`). For kernels that read blocks as they are stored."""
        entry = self.entries[name]
        return self._by_path[entry.file].bytes_of(entry, interleaved_heads(name, self.config))

    def as_stored(self, entry: TensorEntry) -> torch.Tensor:
        """The values of an entry with its rows in the order of the file, for writing another file of its kind."""
        return self._by_path[entry.file].values_of(entry)

    def bytes_as_stored(self, entry: TensorEntry) -> torch.Tensor:
        """As `as_stored`: the stored bytes, uint8 [*shape[:-1], bytes of a row]."""
        return self._by_path[entry.file].bytes_of(entry)

    def release_as_stored(self, entry: TensorEntry) -> None:
        """As `release`, for an entry that may have no name here."""
        self._by_path[entry.file].release_entry(entry)

    def packed(self, name: str) -> None:
        """GGUF files hold no packed BF16."""

    def q8_0(self, name: str) -> torch.Tensor | None:
        """As `raw` for a tensor of Q8_0 blocks, else None."""
        return self.raw(name) if self.entries[name].dtype == "Q8_0" else None

    def release(self, name: str) -> None:
        """Let go of the memory behind the tensor ``name``, as `MappedFile.release`."""
        self.release_as_stored(self.entries[name])

    def check_unchanged(self) -> None:
        """CorruptFile if a part changed since it was opened; call it after the last use of mapped tensors' bytes."""
        for file in self.files:
            file.check_unchanged()

    def close(self) -> None:
        """Close all parts. Tensors still alive keep their maps. May be called twice."""
        for file in self.files:
            file.close()

    def __enter__(self) -> GGUFCheckpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _drop_rope_factors(self, stored: dict[str, TensorEntry]) -> None:
        # Llama 3.1 and later store divisors of the rotary frequencies; only ones leave the maths alone.
        for name in ROPE_FACTORS:
            entry = stored.pop(name, None)
            if entry and any(factor != 1.0 for factor in self._by_path[entry.file].floats(name)):
                raise UnsupportedModel(
                    f"{entry.file}: {name} scales the rotary frequencies, which lluda does not do; "
                    "supported: none, or factors of one"
                )


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


def _open_parts(path: Path) -> tuple[GGUFFile, ...]:
    """The file ``path``, or all parts of the set whose first part it is (keys ``split.no``, from 0, and
    ``split.count``; the names count from 1)."""
    first = GGUFFile(path)
    files = [first]
    try:
        count = _split_number(first, "split.count", 1)
        number = _split_number(first, "split.no", None) if count > 1 else 0
        if number:
            start = _part_path(path, 0, count)
            remedy = f"open {start} instead" if start and start != path else "restore the names of the parts"
            raise CorruptFile(path, f"this is part {number + 1} of {count} of a split model (split.no); {remedy}")
        for index in range(1, count):
            files.append(_open_part(path, index, count))
            _refuse_foreign(files[index], first, index, count)
        _refuse_short_set(files, count)
    except BaseException:
        for file in files:
            file.close()
        raise
    return tuple(files)


def _open_part(first: Path, index: int, count: int) -> GGUFFile:
    part = _part_path(first, index, count)
    if part is None or part == first or _part_path(first, 0, count) != first:
        rule = f"part 1 of {count} of a split model must be named so that the others can be found"
        raise CorruptFile(first, rule, expected=f"NAME-00001-of-{count:05}.gguf", found=first.name)
    try:
        return GGUFFile(part)
    except ModelNotFound as error:
        rule = f"part {index + 1} of {count} of the split model is missing; put it beside {first.name}"
        raise CorruptFile(part, rule) from error


def _part_path(path: Path, index: int, count: int) -> Path | None:
    """The path of part ``index`` (from 0) beside the part ``path``; None if its name is not that of a part."""
    match = _PART_NAME.fullmatch(path.name)
    if match is None or int(match["count"]) != count:
        return None
    return path.with_name(f"{match['stem']}-{index + 1:05}{match['of']}{count:05}{match['suffix']}")


def _refuse_foreign(part: GGUFFile, first: GGUFFile, index: int, count: int) -> None:
    number = _split_number(part, "split.no", None)
    if number != index:
        rule = f"the file named as part {index + 1} of {count} holds another part (split.no); restore the names"
        raise CorruptFile(part.path, rule, expected=index, found=number)
    for key in part.metadata.keys() & (first.metadata.keys() | {"split.count"}):
        # Each part may have its own alignment; whatever else it repeats must agree.
        if key in ("split.no", "general.alignment"):
            continue
        wanted, found = first.metadata[key], part.metadata[key]
        if not same_value(wanted, found):
            rule = f"part {index + 1} of {count} is of another model: its {key} differs from the first part's"
            raise CorruptFile(part.path, rule, expected=described(wanted), found=described(found))


def _refuse_short_set(files: list[GGUFFile], count: int) -> None:
    if count == 1 or "split.tensors.count" not in files[0].metadata:
        return
    wanted = _split_number(files[0], "split.tensors.count", None)
    found = sum(len(file.entries) for file in files)
    if wanted != found:
        names = ", ".join(f"{file.path.name} {len(file.entries)}" for file in files[:8])
        rule = f"the {count} parts do not hold as many tensors as split.tensors.count says ({names})"
        raise CorruptFile(files[0].path, rule, expected=wanted, found=found)


def _split_number(file: GGUFFile, key: str, default: int | None) -> int:
    lowest, highest = (1, _MAX_PARTS) if key == "split.count" else (0, 2**31 - 1)
    return file.metadata.integer(key, lowest, highest, default=default)


def _all_entries(files: tuple[GGUFFile, ...]) -> dict[str, TensorEntry]:
    entries: dict[str, TensorEntry] = {}
    for file in files:
        for name, entry in file.entries.items():
            if name in entries:
                raise CorruptFile(file.path, f"the tensor {name!r} is also in {entries[name].file.name}")
            entries[name] = entry
    return entries
