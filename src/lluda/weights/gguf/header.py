"""The header of a GGUF file: metadata and the list of tensors, with every rule checked.

Layout (the GGUF document of the ggml project, versions 2 and 3, little-endian): magic ``GGUF``, u32 version, u64 number
of tensors, u64 number of keys; the keys (string, u32 type, value); the tensors (string, u32 number of dimensions, u64
for each, innermost first, u32 type, u64 offset from the data); padding to ``general.alignment``; the data. A string is
a u64 byte count and that much UTF-8. Counts are compared with the bytes left before anything is made of them.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

from lluda.errors import CorruptFile
from lluda.files.foreign_content import SAMPLE_BYTES, foreign_content
from lluda.formats.format import BlockFormat
from lluda.formats.registry import FORMATS
from lluda.weights.entry import TensorEntry

MAX_HEADER_BYTES = 64 * 2**20
"""Limit of everything before the data (the largest vocabularies take about 20 MB). As Python objects it takes up to
about ten times its bytes, so this also bounds the memory a hostile file can take."""

MAX_TENSORS = 2**17
"""Limit of tensors in one file: the largest released models have some 2,000, all experts of a layer being one."""

MAX_KEYS = 2**14
MAX_ARRAYS = 2**14
"""Limit of arrays within arrays in one file."""

MAX_STRINGS = 2**21
"""Limit of strings in all arrays of a file: the largest vocabularies with their merges have 0.8 million."""

MAX_KEY_BYTES = 65535
MAX_NAME_BYTES = 64
MAX_DIMENSIONS = 4
MAX_ARRAY_DEPTH = 4
DEFAULT_ALIGNMENT = 32

STORAGE_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    6: "Q5_0",
    7: "Q5_1",
    8: "Q8_0",
    10: "Q2_K",
    11: "Q3_K",
    12: "Q4_K",
    13: "Q5_K",
    14: "Q6_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    30: "BF16",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
    40: "NVFP4",
    41: "Q1_0",
}
"""Names of the formats by the numbers that GGUF files have for them. Blocks never cross rows."""

_NEVER_STORED = {
    **dict.fromkeys((4, 5, 31, 32, 33, 36, 37, 38), "one that ggml removed; convert the model again"),
    **dict.fromkeys((9, 15), "one that ggml uses in memory only"),
}

_MAGIC = b"GGUF"
_SMALLEST_KEY = 8 + 1 + 4 + 1
_SMALLEST_TENSOR = 8 + 1 + 4 + 8 + 4 + 8
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")

_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: _U32,
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<B"),
    10: _U64,
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """The header's contents. ``metadata`` values are int, float, bool, str; an array is a list if it holds strings or
    arrays, else a one-dimensional numpy array of the stored type. ``spans`` are first byte and end of each key with its
    value. ``entries`` are in file order, with the file's own names, shapes in torch order and absolute offsets."""

    version: int
    alignment: int
    metadata: dict[str, Any]
    spans: dict[str, tuple[int, int]]
    entries: dict[str, TensorEntry]


def read_header(data: mmap.mmap, size: int, path: Path) -> GGUFHeader:
    """Parse the header of ``data``, the ``size`` bytes of the file ``path``. CorruptFile: any rule broken."""
    version = _version(data, path)
    cursor = _Cursor(data, size, path)
    tensors = cursor.count(_U64, _SMALLEST_TENSOR, "number of tensors", MAX_TENSORS)
    keys = cursor.count(_U64, _SMALLEST_KEY, "number of metadata keys", MAX_KEYS)
    alignment = DEFAULT_ALIGNMENT
    metadata: dict[str, Any] = {}
    spans: dict[str, tuple[int, int]] = {}
    for index in range(keys):
        start = cursor.position
        key = cursor.name(f"metadata key {index}", MAX_KEY_BYTES)
        if key in metadata:
            raise CorruptFile(path, f"the metadata key {key[:80]!r} appears twice")
        kind = cursor.number(_U32, f"the type of {key[:80]!r}")
        metadata[key] = _value(cursor, key, kind, 0)
        spans[key] = start, cursor.position
        if key == "general.alignment":
            alignment = _alignment(metadata[key], kind, path)
    infos = [_info(cursor, index) for index in range(tensors)]
    data_start = -(-cursor.position // alignment) * alignment
    return GGUFHeader(version, alignment, metadata, spans, _entries(infos, data_start, alignment, size, path))


def read_value(data: mmap.mmap, span: tuple[int, int], path: Path) -> Any:
    """The value of the key at ``span`` (as in `GGUFHeader`) once more, of a file whose header was read before."""
    cursor = _Cursor(data, span[1], path)
    cursor.position = span[0]
    key = cursor.string("a key")
    return _value(cursor, key, cursor.number(_U32, key), 0)


def _version(data: mmap.mmap, path: Path) -> int:
    if data[:4] != _MAGIC:
        foreign = foreign_content(data[:SAMPLE_BYTES], len(data))
        rule = f"not a GGUF file: {foreign or 'its first bytes are wrong'}"
        raise CorruptFile(path, rule, expected=None if foreign else _MAGIC, found=None if foreign else data[:4])
    version: int = _U32.unpack_from(data, 4)[0]
    if version and version % 65536 == 0:
        raise CorruptFile(
            path,
            "the GGUF file is byte-swapped (big-endian); convert the model again as little-endian",
            expected="version 2 or 3",
            found=f"version {int.from_bytes(_U32.pack(version), 'big')} in the other byte order",
        )
    if version not in (2, 3):
        rule = f"GGUF version {version} is not read; convert the model again with a current converter"
        raise CorruptFile(path, rule, expected="version 2 or 3", found=version)
    return version


class _Cursor:
    """Walks the header; nothing is read past the end of the file or of `MAX_HEADER_BYTES`."""

    def __init__(self, data: mmap.mmap, size: int, path: Path) -> None:
        self.data = data
        self.path = path
        self.position = 8
        self.end = min(size, MAX_HEADER_BYTES)
        self.strings_left = MAX_STRINGS
        self.arrays_left = MAX_ARRAYS
        self._size = size

    def skip(self, count: int, what: str) -> int:
        """Step over ``count`` bytes that hold ``what``; where they start."""
        start = self.position
        if count > self.end - start:
            raise self.short(what, count)
        self.position = start + count
        return start

    def short(self, what: str, count: int) -> CorruptFile:
        left = self.end - self.position
        if self.end < self._size:
            rule = f"{what} reaches past the limit of {MAX_HEADER_BYTES} bytes before the tensor data"
        else:
            rule = f"{what} reaches past the end of the file; download or write it again"
        return CorruptFile(self.path, rule, expected=f"at least {count} bytes", found=f"{left} bytes left")

    def number(self, kind: struct.Struct, what: str) -> Any:
        return kind.unpack_from(self.data, self.skip(kind.size, what))[0]

    def count(self, kind: struct.Struct, smallest: int, what: str, limit: int | None = None) -> int:
        """A count of at most ``limit`` things that take at least ``smallest`` bytes each."""
        count: int = self.number(kind, what)
        if count * smallest > self.end - self.position:
            raise self.short(f"{what} {count}", count * smallest)
        if limit is not None and count > limit:
            raise CorruptFile(self.path, f"{what} {count} is more than lluda reads", expected=f"at most {limit}")
        return count

    def name(self, what: str, limit: int) -> str:
        """A non-empty printable string of at most ``limit`` bytes."""
        length: int = self.number(_U64, f"the length of {what}")
        if not 1 <= length <= limit:
            raise CorruptFile(self.path, f"{what} must have 1 to {limit} bytes", found=length)
        start = self.skip(length, what)
        text = self._text(self.data[start : self.position], what)
        if not text.isprintable():
            raise CorruptFile(self.path, f"{what} has characters that cannot be printed", found=text)
        return text

    def string(self, what: str) -> str:
        length: int = self.number(_U64, f"the length of {what}")
        start = self.skip(length, what)
        return self._text(self.data[start : self.position], what)

    def strings(self, count: int, what: str) -> list[str]:
        """``count`` strings: as `string`, in one tight loop (vocabularies have 10^5 of them)."""
        data, end, position = self.data, self.end, self.position
        unpack = _U64.unpack_from
        pieces = []
        for _ in range(count):
            start = position + 8
            if start > end:
                raise self.short(what, start - self.position)
            position = start + unpack(data, start - 8)[0]
            if position > end:
                raise self.short(what, position - self.position)
            pieces.append(data[start:position])
        self.position = position
        try:
            return [str(piece, "utf-8") for piece in pieces]
        except UnicodeDecodeError:
            return [self._text(piece, what) for piece in pieces]  # raises, with the message

    def _text(self, data: bytes, what: str) -> str:
        try:
            return str(data, "utf-8")
        except UnicodeDecodeError as error:
            raise CorruptFile(self.path, f"{what} is not UTF-8", found=data[:80]) from error


def _value(cursor: _Cursor, key: str, kind: int, depth: int) -> Any:
    what = f"the value of {key[:80]!r}"
    if kind == _STRING:
        return cursor.string(what)
    if kind == _ARRAY:
        return _array(cursor, key, depth)
    if kind not in _SCALARS:
        raise CorruptFile(cursor.path, f"{what} has an unknown type", expected="0 to 12", found=kind)
    number = cursor.number(_SCALARS[kind], what)
    if kind != _BOOL:
        return number
    if number > 1:
        raise CorruptFile(cursor.path, f"{what} is a bool that is neither 0 nor 1", found=number)
    return bool(number)


def _array(cursor: _Cursor, key: str, depth: int) -> Any:
    what = f"the array {key[:80]!r}"
    if depth >= MAX_ARRAY_DEPTH:
        raise CorruptFile(cursor.path, f"{what} is nested too deep", expected=f"at most {MAX_ARRAY_DEPTH} levels")
    kind: int = cursor.number(_U32, f"the type of {what}")
    if kind == _STRING:
        count = cursor.count(_U64, 8, f"{what} of length", cursor.strings_left)
        cursor.strings_left -= count
        return cursor.strings(count, what)
    if kind == _ARRAY:
        count = cursor.count(_U64, 12, f"{what} of length", cursor.arrays_left)
        cursor.arrays_left -= count
        return [_array(cursor, key, depth + 1) for _ in range(count)]
    if kind not in _SCALARS:
        raise CorruptFile(cursor.path, f"{what} has an unknown type", expected="0 to 12", found=kind)
    import numpy as np

    scalar = _SCALARS[kind]
    count = cursor.count(_U64, scalar.size, f"{what} of length")
    start = cursor.skip(count * scalar.size, what)
    values = np.frombuffer(cursor.data, dtype=scalar.format, count=count, offset=start).copy()
    if kind != _BOOL:
        return values
    if count and values.max() > 1:
        raise CorruptFile(cursor.path, f"{what} has a bool that is neither 0 nor 1", found=int(values.max()))
    return values.astype(bool)


def _alignment(value: Any, kind: int, path: Path) -> int:
    if kind != 4 or value == 0 or value & (value - 1):
        raise CorruptFile(
            path, "general.alignment must be a u32 and a power of two", found=value if kind == 4 else f"type {kind}"
        )
    return int(value)


@dataclass(frozen=True, slots=True)
class _Info:
    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


def _info(cursor: _Cursor, index: int) -> _Info:
    name = cursor.name(f"the name of tensor {index}", MAX_NAME_BYTES)
    dimensions = cursor.number(_U32, f"tensor {name!r}")
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        rule = f"tensor {name!r} must have 1 to {MAX_DIMENSIONS} dimensions"
        raise CorruptFile(cursor.path, rule, found=dimensions)
    innermost_first = [cursor.number(_U64, f"tensor {name!r}") for _ in range(dimensions)]
    kind = cursor.number(_U32, f"tensor {name!r}")
    offset = cursor.number(_U64, f"tensor {name!r}")
    return _Info(name, tuple(reversed(innermost_first)), kind, offset)


def _entries(infos: list[_Info], start: int, alignment: int, size: int, path: Path) -> dict[str, TensorEntry]:
    entries: dict[str, TensorEntry] = {}
    for info in infos:
        if info.name in entries:
            raise CorruptFile(path, f"the tensor {info.name!r} appears twice")
        dtype, nbytes = _storage(info, path)
        if info.offset % alignment:
            rule = f"tensor {info.name!r}: its offset must be a multiple of the alignment {alignment}"
            raise CorruptFile(path, rule, found=info.offset)
        if start + info.offset + nbytes > size:
            rule = f"tensor {info.name!r} reaches past the end of the file; download or write it again"
            raise CorruptFile(path, rule, expected=f"at least {start + info.offset + nbytes} bytes", found=size)
        entries[info.name] = TensorEntry(info.name, info.shape, dtype, nbytes, path, start + info.offset)
    _refuse_overlap(entries.values(), path)
    return entries


def _storage(info: _Info, path: Path) -> tuple[str, int]:
    """The name of the tensor's type and its byte count."""
    if info.kind not in STORAGE_TYPES:
        reason = _NEVER_STORED.get(info.kind, f"unknown to this lluda, which knows up to {max(STORAGE_TYPES)}")
        raise CorruptFile(path, f"tensor {info.name!r}: its type is {reason}", found=f"type {info.kind}")
    stored_as = block_format(STORAGE_TYPES[info.kind])
    elements = prod(info.shape)
    if not 1 <= elements < 2**63:
        rule = f"tensor {info.name!r}: every dimension must be at least 1 and their product below 2^63"
        raise CorruptFile(path, rule, found=list(info.shape))
    if info.shape[-1] % stored_as.block:
        rule = f"tensor {info.name!r}: a row of {stored_as.name} must be a multiple of {stored_as.block} values"
        raise CorruptFile(path, rule, found=info.shape[-1])
    return stored_as.name, stored_as.least_bytes(info.shape)


def block_format(name: str) -> BlockFormat:
    """The format ``name``, one of `STORAGE_TYPES`."""
    found = FORMATS[name]
    assert isinstance(found, BlockFormat), f"GGUF stores rows of blocks, {name} is none of them"
    return found


def _refuse_overlap(entries: Iterable[TensorEntry], path: Path) -> None:
    for before, after in pairwise(sorted(entries, key=lambda entry: entry.offset)):
        if before.offset + before.nbytes > after.offset:
            rule = f"the tensors {before.name!r} and {after.name!r} overlap"
            raise CorruptFile(
                path, rule, expected=f"{after.name!r} from {before.offset + before.nbytes} on", found=after.offset
            )
