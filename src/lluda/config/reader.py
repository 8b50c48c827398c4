"""Strict reading of one JSON object: each value has a type and a range, and every key must have been read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lluda.config.inert import is_inert
from lluda.errors import CorruptFile, UnsupportedModel

_OFF_KEYS = ("mlp_bias", "per_layer_config", "pruned_heads", "use_mrope")
"""Switches and lists that transformers or a tool writes in their off position, the only one that is implemented."""

_QUANTIZATION_KEYS = ("compression_config", "quantization", "quantization_config")


class ConfigReader:
    """Reads the keys of ``raw``, remembering which; ``path`` names the file (and section) in errors.

    A key that is absent or null takes its default; without one it is missing. All errors are CorruptFile with field,
    value and rule, except for values that are well-formed but not implemented (UnsupportedModel). ``allow_unknown``
    holds for the sections below, too.
    """

    def __init__(self, raw: Mapping[str, Any], path: str, *, allow_unknown: bool = False) -> None:
        if not isinstance(raw, Mapping):
            raise CorruptFile(path, "must be a JSON object", found=type(raw).__name__)
        self.raw = raw
        self.path = path
        self.allow_unknown = allow_unknown
        self._read: set[str] = set()
        self._spelled: dict[str, str] = {}

    def one_name(self, key: str, *others: str) -> None:
        """One setting that files know under several names: it is read as ``key``; messages show the
        name that the file has. CorruptFile if two of the names are set to different values."""
        for other in others:
            value = self.raw.get(other)
            self._read.add(other)
            if value is None:
                continue
            if self.raw.get(key, value) not in (value, None):
                rule = f"{key} and {other} are one setting under two names and must not differ; keep the right one"
                raise CorruptFile(self.path, rule, found=f"{key} {self.raw[key]!r:.60}, {other} {value!r:.60}")
            if self.raw.get(key) is None:
                self._spelled[key] = other
            self.raw = {**self.raw, key: value}

    def fixed(self, **values: Any) -> ConfigReader:
        """A reader of the same section in which ``values``, which its class fixes, replace its own."""
        return ConfigReader({**self.raw, **values}, self.path, allow_unknown=self.allow_unknown)

    def integer(self, key: str, minimum: int, maximum: int, *, default: int | None = None) -> int:
        """An integer in [minimum, maximum]; a default need not keep that rule."""
        value = self._value(key, default)
        if self.raw.get(key) is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            raise CorruptFile(self.path, f"{self._spelled.get(key, key)} must be an integer", found=value)
        if not minimum <= value <= maximum:
            raise CorruptFile(
                self.path, f"{self._spelled.get(key, key)} must be from {minimum} to {maximum}", found=value
            )
        return value

    def number(self, key: str, above: float, maximum: float, *, default: float | None = None) -> float:
        """A finite number in (above, maximum]; a default need not keep that rule."""
        value = self._value(key, default)
        if self.raw.get(key) is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise CorruptFile(self.path, f"{self._spelled.get(key, key)} must be a number", found=value)
        if not above < value <= maximum:  # no NaN is
            raise CorruptFile(
                self.path,
                f"{self._spelled.get(key, key)} must be a number above {above:g}, up to {maximum:g}",
                found=value,
            )
        return float(value)

    def boolean(self, key: str, *, default: bool) -> bool:
        """True or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise CorruptFile(self.path, f"{self._spelled.get(key, key)} must be true or false", found=value)
        return value

    def choice(self, key: str, allowed: tuple[str, ...], *, default: str, unsupported: bool = False) -> str:
        """One of ``allowed``; another word is UnsupportedModel if ``unsupported``, else CorruptFile."""
        value = self._value(key, default)
        if value == default or value in allowed:
            return str(value)
        if unsupported:
            raise UnsupportedModel(
                f"{self.path}: {key} {value!r:.80} is not supported; supported: {', '.join(allowed)}"
            )
        raise CorruptFile(self.path, f"{self._spelled.get(key, key)} must be one of {', '.join(allowed)}", found=value)

    def integers(self, key: str, minimum: int, maximum: int) -> tuple[int, ...]:
        """A list of integers in [minimum, maximum]; absent means empty."""
        values = self._list(key)
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
                raise CorruptFile(
                    self.path,
                    f"{self._spelled.get(key, key)} must hold integers from {minimum} to {maximum}",
                    found=value,
                )
        return tuple(values)

    def strings(self, key: str, allowed: tuple[str, ...]) -> tuple[str, ...]:
        """A list of words, each one of ``allowed`` (else UnsupportedModel); absent means empty."""
        values = self._list(key)
        for value in values:
            if value not in allowed:
                raise UnsupportedModel(
                    f"{self.path}: {key} holds {value!r:.80}, which is not supported; supported: {', '.join(allowed)}"
                )
        return tuple(values)

    def token_ids(self, key: str) -> tuple[int, ...]:
        """One id or a list of ids; absent means none."""
        value = self.raw.get(key)
        self._read.add(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        for one in ids:
            if isinstance(one, bool) or not isinstance(one, int) or one < 0:
                raise CorruptFile(
                    self.path, f"{self._spelled.get(key, key)} must be a token id or a list of them", found=one
                )
        return tuple(ids)

    def section(self, key: str) -> ConfigReader | None:
        """A nested object with a reader of its own; None if absent or null."""
        value = self.raw.get(key)
        self._read.add(key)
        return None if value is None else ConfigReader(value, f"{self.path}: {key}", allow_unknown=self.allow_unknown)

    def required_section(self, key: str) -> ConfigReader:
        """A nested object that must be there."""
        section = self.section(key)
        if section is None:
            raise CorruptFile(self.path, f"{key} is missing")
        return section

    def forbid(self, key: str) -> None:
        """A switch that is implemented only in its off position: false, or empty."""
        self._read.add(key)
        if self.raw.get(key):
            raise UnsupportedModel(f"{self.path}: {key} {self.raw[key]!r:.80} is not supported; supported: false")

    def ignore(self, *keys: str) -> None:
        """Keys known to have no influence."""
        self._read.update(keys)

    def refuse_unread(self) -> None:
        """UnsupportedModel if a key nobody read is set: it may change the maths."""
        self.refuse_quantization()
        for key in _OFF_KEYS:
            self.forbid(key)
        unknown = sorted(
            str(key)
            for key, value in self.raw.items()
            if value is not None and key not in self._read and not is_inert(str(key))
        )
        if unknown and not self.allow_unknown:
            shown = ", ".join(repr(key)[1:-1][:60] for key in unknown[:10])  # may hold line ends and half surrogates
            raise UnsupportedModel(
                f"{self.path}: unknown keys that may change the maths: {shown}; "
                "pass --allow-unknown-config (allow_unknown_config=True) to ignore them"
            )

    def refuse_quantization(self) -> None:
        """UnsupportedModel if the section says that its weights are quantised by another tool."""
        for key in _QUANTIZATION_KEYS:
            self._read.add(key)
            said = self.raw.get(key)
            if said:
                method = said.get("quant_method", said.get("mode")) if isinstance(said, Mapping) else None
                what = f"{key} ({method!r:.40})" if method else f"{key} (MLX's)" if key == "quantization" else key
                raise UnsupportedModel(f"{self.path}: {what} is not supported; use the BF16 release of this model")

    def _value(self, key: str, default: Any) -> Any:
        self._read.add(key)
        value = self.raw.get(key)
        if value is not None:
            return value
        if default is None:
            raise CorruptFile(self.path, f"{key} is missing")
        return default

    def _list(self, key: str) -> list[Any]:
        self._read.add(key)
        value = self.raw.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise CorruptFile(self.path, f"{self._spelled.get(key, key)} must be a list", found=value)
        return value
