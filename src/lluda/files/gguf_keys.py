"""The keys of a GGUF file, each read by the type it must have.

The format lets any key hold any type, an array where a number belongs included. Code that uses a value reads it by its
type here, so that a wrong type is an error that names the key.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lluda.errors import CorruptFile

_LONG = 1000
_RELEASED = object()


class GGUFKeys(Mapping[str, Any]):
    """Keys and raw values of the file ``path`` (int, float, bool, str, list, numpy array), with readers by type.

    A reader's default holds where the key is absent; without one the key is required. Every error is CorruptFile.
    ``read_again`` reads one value from the file; with it, `release` frees long arrays until they are asked for.
    """

    def __init__(self, values: Mapping[str, Any], path: Path, read_again: Callable[[str], Any] | None = None) -> None:
        self._values = dict(values)
        self._read_again = read_again
        self.path = path

    @classmethod
    def of(cls, values: Mapping[str, Any], path: Path) -> GGUFKeys:
        """``values`` of the file ``path``; as it is if it has readers by type already."""
        return values if isinstance(values, cls) else cls(values, path)

    def release(self) -> None:
        """Release long arrays of strings (a vocabulary takes some 20 MB); asked for again, they are read again."""
        if self._read_again is None:
            return
        for key, value in self._values.items():
            if isinstance(value, list) and len(value) > _LONG:
                self._values[key] = _RELEASED

    def __getitem__(self, key: str) -> Any:
        value = self._values[key]
        if value is not _RELEASED:
            return value
        assert self._read_again is not None
        return self._read_again(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def text(self, key: str, *, default: str | None = None) -> str:
        """A string."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, "a string", value)
        return value

    def integer(self, key: str, minimum: int, maximum: int, *, default: int | None = None) -> int:
        """An integer in [minimum, maximum]; a default need not keep that rule."""
        value = self._value(key, default)
        if key not in self._values:
            return int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(key, "an integer", value)
        if not minimum <= value <= maximum:
            raise CorruptFile(self.path, f"{key} must be from {minimum} to {maximum}", found=value)
        return value

    def number(self, key: str, above: float, maximum: float, *, default: float | None = None) -> float:
        """A finite number in (above, maximum]; a default need not keep that rule."""
        value = self._value(key, default)
        if key not in self._values:
            return float(value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, "a number", value)
        if not math.isfinite(value) or not above < value <= maximum:
            raise CorruptFile(self.path, f"{key} must be a number above {above:g}, up to {maximum:g}", found=value)
        return float(value)

    def boolean(self, key: str, *, default: bool) -> bool:
        """True or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false", value)
        return value

    def token_id(self, key: str, below: int) -> int | None:
        """A token's id below ``below``; None where the key is absent."""
        value = self.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < below:
            raise self._wrong(key, f"an id below {below}", value)
        return value

    def strings(self, key: str) -> list[str]:
        """An array of strings."""
        value = self.get(key)
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise self._wrong(key, "an array of strings", value)
        return value

    def integers(self, key: str) -> list[int]:
        """An array of integers; booleans are none."""
        value = self._value(key, None)
        listed = value.tolist() if is_array(value) and not isinstance(value, list) else value
        if not isinstance(listed, list) or not all(type(one) is int for one in listed):
            raise self._wrong(key, "an array of integers", value)
        return listed

    def _value(self, key: str, default: Any) -> Any:
        value = self.get(key, default)
        if value is None:
            raise CorruptFile(self.path, f"{key} is missing; convert the model again with a current converter")
        return value

    def _wrong(self, key: str, expected: str, value: Any) -> CorruptFile:
        return CorruptFile(self.path, f"{key} must be {expected}", found=described(value))


def is_array(value: Any) -> bool:
    """Whether a raw value is an array: a list (of strings or arrays) or a numpy array."""
    return not isinstance(value, str | int | float)


def described(value: Any) -> Any:
    """A raw value for messages: an array by its length, anything else as it is."""
    if value is None:
        return "nothing"
    if not is_array(value):
        return value
    kind = "values" if isinstance(value, list) else str(value.dtype)
    return f"an array of {len(value)} {kind}"


def same_value(one: Any, other: Any) -> bool:
    """Whether two raw values are equal, arrays within arrays too; a NaN equals a NaN."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_value, one, other))
    if type(one) is not type(other):
        return False
    if is_array(one):
        return bool(one.dtype == other.dtype and one.tobytes() == other.tobytes())
    return bool(one == other or (one != one and other != other))  # noqa: PLR0124
