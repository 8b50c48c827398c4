"""Strict JSON from files that others wrote: bounded in size and depth, and never ambiguous.

RFC 8259 leaves duplicate keys, non-finite numbers and nesting to the implementation, and Python's ``json`` accepts them
all. Here each is an error, as is a byte order mark, so that no two readers can see two different configs in one file.
"""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any

from lluda.errors import CorruptFile
from lluda.files.foreign_content import SAMPLE_BYTES, foreign_content
from lluda.files.mapped_file import open_regular

MAX_JSON_BYTES = 4 * 2**20
"""Default size limit of a JSON file (the largest released Qwen3 config.json has 20 kB). Parsed JSON takes up to
about 20 times its bytes, so this also bounds the memory a hostile file can take."""

MAX_DEPTH = 64
"""Default limit of nesting: released configs use 5 levels."""

MAX_CONTAINERS = 2**20
"""Limit of objects and arrays, empty ones and brackets inside strings counted: a tokenizer.json has half as many."""

MAX_VALUES = 2**21
"""Limit of values, counted by their commas: the largest released tokenizer.json has 1.4 million."""

MAX_DIGITS = 40
"""Longest integer taken: 2^64 has 20 digits."""


def read_json(
    path: Path, *, max_bytes: int = MAX_JSON_BYTES, max_depth: int = MAX_DEPTH, max_values: int = MAX_VALUES
) -> dict[str, Any] | list[Any]:
    """The object or array in the JSON file ``path``.

    CorruptFile: any rule broken (see `parse_json`) or more than ``max_bytes`` bytes, checked by the file's size before
    anything is read. ModelNotFound: absent or not permitted.
    """
    descriptor, status = open_regular(path)
    with os.fdopen(descriptor, "rb") as file:
        if status.st_size > max_bytes:
            raise CorruptFile(
                path, "the JSON file is too large", expected=f"at most {max_bytes} bytes", found=status.st_size
            )
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:  # it grew since
        raise CorruptFile(path, "the JSON file is too large", expected=f"at most {max_bytes} bytes", found="more")
    try:
        value = parse_json(data, path, max_depth=max_depth, max_values=max_values)
    except CorruptFile as error:
        is_json = data.lstrip().startswith((b"{", b"["))
        foreign = None if is_json else foreign_content(data[:SAMPLE_BYTES], len(data))
        if foreign:
            raise CorruptFile(path, foreign) from error
        raise
    if not isinstance(value, dict | list):
        raise CorruptFile(path, "the JSON is neither an object nor an array", found=value)
    return value


def read_json_object(path: Path, *, max_bytes: int = MAX_JSON_BYTES, max_values: int = MAX_VALUES) -> dict[str, Any]:
    """As `read_json`; CorruptFile also if the file holds an array."""
    value = read_json(path, max_bytes=max_bytes, max_values=max_values)
    if not isinstance(value, dict):
        raise CorruptFile(path, "the JSON must be an object", found="an array")
    return value


def parse_json(
    data: bytes | bytearray | str,
    path: Path,
    *,
    part: str = "",
    max_depth: int = MAX_DEPTH,
    max_values: int = MAX_VALUES,
) -> Any:
    """The JSON value in ``data``, which is ``part`` of the file ``path`` (both only for messages).

    CorruptFile: not UTF-8, a byte order mark, not JSON, NaN or Infinity or a number too large for float64, an integer
    of more than `MAX_DIGITS` digits, a duplicate key, half a surrogate pair in a text, nesting deeper than
    ``max_depth``, more than `MAX_CONTAINERS` objects and arrays, or more than ``max_values`` values.
    """
    where = f"{part}: " if part else ""
    text = data if isinstance(data, str) else decode_utf8(data, path, where)
    _refuse_too_many(text, path, where, max_values)
    try:
        value = (_STRICT if _may_have_large_number(text) else _QUICK).decode(text)
    except json.JSONDecodeError as error:
        raise CorruptFile(path, f"{where}not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from error
    except _RefusedError as error:
        raise CorruptFile(path, f"{where}{error}") from error
    except RecursionError:
        raise CorruptFile(path, f"{where}nested too deep", expected=f"at most {max_depth} levels") from None
    _check_depth(value, path, where, max_depth)
    if "\\ud" in text or "\\uD" in text:  # else no text in it can have one
        _check_surrogates(value, path, where)
    return value


def decode_utf8(data: bytes | bytearray, path: Path, where: str = "") -> str:
    """``data`` as text; CorruptFile if it is not UTF-8 or starts with a byte order mark."""
    if data.startswith(b"\xef\xbb\xbf"):
        raise CorruptFile(path, f"{where}starts with a byte order mark; save it as UTF-8 without one")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorruptFile(path, f"{where}not UTF-8", found=f"byte {data[error.start]:#04x} at {error.start}") from error


class _RefusedError(Exception):
    """JSON that Python accepts and lluda does not; carries the rule to `parse_json`."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys: set[str] = set()
        for key, _ in pairs:
            if key in keys:
                raise _RefusedError(f"the key {ascii(key)[:120]} appears twice in one object")
            keys.add(key)
    return result


def _float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise _RefusedError(f"the number {digits[:40]} is too large for float64")
    return number


def _int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise _RefusedError(f"an integer of {len(digits)} digits; at most {MAX_DIGITS} are taken")
    return int(digits)


def _constant(word: str) -> float:
    raise _RefusedError(f"{word} is not a JSON number")


_STRICT = json.JSONDecoder(
    object_pairs_hook=_object, parse_float=_float, parse_int=_int, parse_constant=_constant, strict=True
)
_QUICK = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, strict=True)
"""The same where no number can be too long or too large: a call for each number takes longer than all the rest."""

_TEXT_OR_LARGE_NUMBER = re.compile(
    rf'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\Z)|(\d{{{MAX_DIGITS + 1}}}|\d[eE][+-]?\d{{3}})', re.ASCII | re.DOTALL
)


def _may_have_large_number(text: str) -> bool:
    """Texts, also one that does not end, are passed over: in megabytes of base64 no digits are looked at."""
    return any(found.lastindex for found in _TEXT_OR_LARGE_NUMBER.finditer(text))


def _refuse_too_many(text: str, path: Path, where: str, max_values: int) -> None:
    """CorruptFile for a text whose values would take far more memory than itself, counted before any is made."""
    for what, marks, limit in (("objects and arrays", "{[", MAX_CONTAINERS), ("values", ",", max_values)):
        count = sum(map(text.count, marks)) if len(text) > limit else 0
        if count > limit:
            rule = f"{where}too many {what} in one JSON text"
            raise CorruptFile(path, rule, expected=f"at most {limit}", found=count)


def _check_depth(value: Any, path: Path, where: str, max_depth: int) -> None:
    level = [value]
    for _ in range(max_depth):
        level = [
            child
            for parent in level
            for child in (parent.values() if type(parent) is dict else parent if type(parent) is list else ())
            if type(child) is dict or type(child) is list
        ]
        if not level:
            return
    raise CorruptFile(path, f"{where}nested too deep", expected=f"at most {max_depth} levels")


def _check_surrogates(value: Any, path: Path, where: str) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        found = f"\\u{ord(error.object[error.start]):04x}"
        raise CorruptFile(path, f"{where}a text holds half a surrogate pair", found=found) from None
