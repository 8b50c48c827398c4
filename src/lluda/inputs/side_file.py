"""Small files beside the weights (tokenizer, template): read whole, bounded, and never ambiguous."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from lluda.errors import CorruptFile, ModelNotFound


def read_text(path: Path, max_bytes: int) -> str:
    """The text of the UTF-8 file ``path``.

    CorruptFile: not a regular file, more than ``max_bytes`` bytes, not UTF-8, or a byte order mark. ModelNotFound:
    absent or not permitted.
    """
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for a writer
            raise CorruptFile(path, "not a regular file")
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise ModelNotFound(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None
    if len(data) > max_bytes:
        raise CorruptFile(path, "the file is too large", expected=f"at most {max_bytes} bytes")
    if data.startswith(b"\xef\xbb\xbf"):
        raise CorruptFile(path, "starts with a byte order mark; save it as UTF-8 without one")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorruptFile(path, "not UTF-8", found=f"byte {data[error.start]:#04x} at {error.start}") from None


def read_object(path: Path, max_bytes: int) -> dict[str, Any]:
    """The JSON object in ``path``. CorruptFile also if it is no JSON object or a key appears twice in one object."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            count = Counter(key for key, _ in pairs)
            raise CorruptFile(path, f"the key {count.most_common(1)[0][0][:80]!a} appears twice in one object")
        return result

    text = read_text(path, max_bytes)
    try:
        value = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise CorruptFile(path, f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise CorruptFile(path, "the JSON is nested too deep") from None
    except ValueError:  # an integer of more digits than Python converts
        raise CorruptFile(path, "the JSON holds a number that is too long") from None
    if not isinstance(value, dict):
        raise CorruptFile(path, "the JSON must be an object", found=type(value).__name__)
    return value
