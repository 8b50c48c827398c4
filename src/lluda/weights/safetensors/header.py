"""The header of a safetensors file: an own scanner and every rule of the format, checked before any tensor is used.

Source: the format section of the safetensors README and its documented validation. The file is an 8-byte little-endian
length N, N bytes of JSON, then the tensors' bytes without gaps. Stricter than the reference reader where that lets two
readers disagree: duplicate names, unknown fields and names with control characters are errors.

The JSON is scanned entry by entry, never as a whole, so memory stays a small multiple of the header's bytes however it
is nested, and the first broken entry ends the work.
"""

from __future__ import annotations

import re
from json import JSONDecodeError, JSONDecoder
from pathlib import Path
from typing import Any

from lluda.errors import CorruptFile
from lluda.files.json_file import decode_utf8, parse_json
from lluda.weights.entry import TensorEntry

MAX_HEADER_BYTES = 100_000_000
"""The format's limit of the JSON's length."""

LENGTH_BYTES = 8

DTYPE_BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
"""Bits of one value, for every dtype of the format (as of safetensors 0.8)."""

MAX_TENSORS = 2**17
"""Limit of tensors in one file: the largest released models have 70,000 in all."""

MAX_DIMENSIONS = 32
"""Limit of a tensor's dimensions; released ones have five."""

MAX_METADATA_KEYS = 2**16

_METADATA = "__metadata__"
_FIELDS = {"dtype", "shape", "data_offsets"}
_MAX_INFO = 4096  # characters of one tensor's description; real ones have about 70
_MAX_BYTES = 2**63 - 1  # torch counts bytes and elements in int64
_WHITESPACE = re.compile(r"[ \t\n\r]*")
_STRING = JSONDecoder(strict=True)

_SPACE = "[ \\t\\n\\r]*+"
_NUMBER = "(?:0|[1-9][0-9]{0,18}+)"
_FIELDS_IN_ORDER = {
    "dtype": '"(?P<dtype>[A-Z0-9_]+)"',
    "shape": rf"\[{_SPACE}(?P<shape>(?:{_NUMBER}{_SPACE}(?:,{_SPACE}{_NUMBER}{_SPACE})*+)?)\]",
    "data_offsets": rf"\[{_SPACE}(?P<begin>{_NUMBER}){_SPACE},{_SPACE}(?P<end>{_NUMBER}){_SPACE}\]",
}
_FIELD = "|".join(f'"{name}"{_SPACE}:{_SPACE}{value}' for name, value in _FIELDS_IN_ORDER.items())
_PLAIN_INFO = re.compile(rf"{{{_SPACE}(?:(?:{_FIELD}){_SPACE}(?:,{_SPACE}(?!}})|(?=}}))){{3}}}}")
"""A description as every writer makes it, its fields in any order. It is read five times as fast as by the JSON parser,
which is for all others and finds out what is wrong with them."""


def read_header(raw: bytes | bytearray, file: Path, file_bytes: int) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """Entries in order of their offsets, and the metadata, of the header ``raw`` of a file of ``file_bytes`` bytes.

    ``raw`` is the JSON alone, of the length that the file's first 8 bytes say. CorruptFile: any rule broken.
    """
    if not raw.startswith(b"{"):
        raise CorruptFile(file, "the header must begin with '{'", found=bytes(raw[:1]))
    tensors, metadata = _Scanner(decode_utf8(raw, file, "header: "), file).scan()
    start = LENGTH_BYTES + len(raw)
    entries = [_entry(name, info, file, start) for name, info in tensors.items()]
    entries.sort(key=lambda entry: (entry.offset, entry.nbytes))
    _check_cover(entries, file, start, file_bytes)
    return {entry.name: entry for entry in entries}, metadata


class _Scanner:
    """The header's text and a position in it: one JSON object of names and descriptions."""

    def __init__(self, text: str, file: Path) -> None:
        self._text = text
        self._file = file
        self._at = 0

    def scan(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Raw descriptions by tensor name, and the metadata."""
        tensors: dict[str, Any] = {}
        metadata: dict[str, str] | None = None
        self._take("{")
        more = not self._skip("}")
        while more:
            name = self._string("a tensor name")
            self._take(":")
            if len(tensors) == MAX_TENSORS:
                raise CorruptFile(
                    self._file, f"the header lists over {MAX_TENSORS} tensors; split the file into shards"
                )
            if name in tensors or (name == _METADATA and metadata is not None):
                raise CorruptFile(self._file, "header: a name appears twice", found=name)
            if name == _METADATA:
                metadata = self._metadata()
            else:
                _check_name(name, self._file)
                tensors[name] = self._info(name)
            more = self._comma()
        if self._text[self._at :].strip(" "):
            raise self._error("only spaces may follow the closing '}'")
        return tensors, metadata or {}

    def _info(self, name: str) -> Any:
        """One tensor's description: an object with neither objects nor '}' inside, so it ends at the first '}'."""
        if self._peek() != "{":
            raise self._error(f"tensor {name[:120]!r} must have an object as its description")
        end = self._text.find("}", self._at, self._at + _MAX_INFO) + 1
        if end == 0:
            raise self._error(f"tensor {name[:120]!r} has a description of over {_MAX_INFO} characters or without end")
        begin, self._at = self._at, end
        if self._text.count(",", begin, end) > MAX_DIMENSIONS + 4:
            rule = f"tensor {name[:120]!r} has more values in its description than {MAX_DIMENSIONS} dimensions take"
            raise CorruptFile(self._file, rule)
        plain = _PLAIN_INFO.fullmatch(self._text, begin, end)
        if plain is None or None in plain.groups():
            return parse_json(self._text[begin:end], self._file, part=f"header: tensor {name[:120]!r}")
        shape = [int(size) for size in plain["shape"].split(",")] if plain["shape"] else []
        return {"dtype": plain["dtype"], "shape": shape, "data_offsets": [int(plain["begin"]), int(plain["end"])]}

    def _metadata(self) -> dict[str, str]:
        if self._peek() != "{":
            raise self._error(f"{_METADATA} must be an object of strings")
        self._take("{")
        metadata: dict[str, str] = {}
        more = not self._skip("}")
        while more:
            key = self._string(f"a key of {_METADATA}")
            self._take(":")
            if key in metadata:
                raise CorruptFile(self._file, f"header: a key of {_METADATA} appears twice", found=key)
            if len(metadata) == MAX_METADATA_KEYS:
                raise CorruptFile(self._file, f"header: {_METADATA} has over {MAX_METADATA_KEYS} keys")
            metadata[key] = self._string(f"a string as the value of {_METADATA}")
            more = self._comma()
        return metadata

    def _string(self, what: str) -> str:
        if self._peek() != '"':
            raise self._error(f"{what} is expected here, in double quotes")
        try:
            value, self._at = _STRING.raw_decode(self._text, self._at)
        except JSONDecodeError as error:
            raise self._error(f"{what} is not a JSON string: {error.msg}") from error
        assert isinstance(value, str)
        return value

    def _comma(self) -> bool:
        """Whether another member follows."""
        if self._skip("}"):
            return False
        self._take(",")
        return True

    def _take(self, mark: str) -> None:
        if not self._skip(mark):
            raise self._error(f"not JSON: {mark!r} is expected here")

    def _skip(self, mark: str) -> bool:
        found = self._peek() == mark
        self._at += found
        return found

    def _peek(self) -> str:
        """The next character that is not white space; "" at the end."""
        space = _WHITESPACE.match(self._text, self._at)
        assert space is not None
        self._at = space.end()
        return self._text[self._at : self._at + 1]

    def _error(self, rule: str) -> CorruptFile:
        found = self._text[self._at : self._at + 20] or "the header's end"
        return CorruptFile(self._file, f"header, character {self._at}: {rule}", found=found)


def _check_name(name: str, file: Path) -> None:
    if not name:
        raise CorruptFile(file, "header: a tensor name is empty")
    if not name.isprintable():
        raise CorruptFile(file, "header: a tensor name has unprintable characters", found=name)
    if name != name.strip():
        raise CorruptFile(file, "header: a tensor name begins or ends with a space", found=repr(name))


def _entry(name: str, info: Any, file: Path, start: int) -> TensorEntry:
    """The validated entry of one description; ``start`` is the file offset of the tensors' bytes."""
    what = f"tensor {name[:120]!r}"
    if info.keys() != _FIELDS:
        raise CorruptFile(file, f"{what}: the description's fields", expected=sorted(_FIELDS), found=sorted(info))
    dtype, shape, offsets = info["dtype"], info["shape"], info["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise CorruptFile(file, f"{what}: unknown dtype", expected=f"one of {', '.join(DTYPE_BITS)}", found=dtype)
    if not _naturals(shape):
        raise CorruptFile(file, f"{what}: the shape must be a list of integers of at least 0", found=shape)
    if not _naturals(offsets) or len(offsets) != 2:
        raise CorruptFile(file, f"{what}: data_offsets must be two integers of at least 0", found=offsets)
    begin, end = offsets
    if end < begin:
        raise CorruptFile(file, f"{what}: data_offsets end before they begin", found=offsets)
    nbytes = _shape_bytes(shape, dtype, file, what)
    if nbytes != end - begin:
        rule = f"{what}: the data_offsets do not span the bytes of shape {shape} in {dtype}"
        raise CorruptFile(file, rule, expected=nbytes, found=end - begin)
    return TensorEntry(name, tuple(shape), dtype, nbytes, file, start + begin)


def _naturals(value: object) -> bool:
    return isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)


def _shape_bytes(shape: list[int], dtype: str, file: Path, what: str) -> int:
    bits = DTYPE_BITS[dtype]
    strides = bits  # as the tensor's largest stride: a dimension of 0 must not hide an overflow in the others
    for size in shape:
        strides *= max(size, 1)
        if strides > 8 * _MAX_BYTES:
            raise CorruptFile(file, f"{what}: the shape overflows", expected=f"at most {_MAX_BYTES} bytes", found=shape)
    total = 0 if 0 in shape else strides
    if total % 8:
        rule = f"{what}: values of {bits} bits must fill whole bytes"
        raise CorruptFile(file, rule, expected="a multiple of 8 bits", found=f"{total} bits")
    return total // 8


def _check_cover(entries: list[TensorEntry], file: Path, start: int, file_bytes: int) -> None:
    """The tensors, in order of offsets, must cover the bytes after the header once, without a gap or a rest."""
    at, before = start, "the header"
    for entry in entries:
        if entry.offset + entry.nbytes > file_bytes:
            raise CorruptFile(
                file,
                f"tensor {entry.name[:120]!r} ends after the file does; download or write it again",
                expected=f"{entry.offset + entry.nbytes} bytes",
                found=file_bytes,
            )
        if entry.offset != at:
            word = "overlaps" if entry.offset < at else "leaves a hole after"
            rule = f"tensor {entry.name[:120]!r} {word} {before}"
            raise CorruptFile(file, rule, expected=f"offset {at}", found=entry.offset)
        at, before = entry.offset + entry.nbytes, f"tensor {entry.name[:120]!r}"
    if at != file_bytes:
        raise CorruptFile(file, "bytes after the last tensor", expected=f"{at} bytes", found=file_bytes)
