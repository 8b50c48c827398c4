"""Rotary positions as a ``config.json`` asks for them: base, axes and YaRN, under transformers 4's and 5's names."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lluda.config.reader import ConfigReader
from lluda.errors import CorruptFile, UnsupportedModel

_UNSCALED = ("default", "mrope")
_UNSCALED_AT_FACTOR_ONE = ("linear", "dynamic")
_YARN_KEYS = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate")
_LARGEST_FACTOR = 1e6
_RELEASED_MROPE_SECTION = (24, 20, 20)


@dataclass(frozen=True, slots=True)
class YarnConfig:
    """YaRN (Peng et al. 2023, arXiv 2309.00071): a model trained on ``original_max_position_embeddings`` positions
    reaches ``factor`` times as many.

    Frequencies that turn more than ``beta_fast`` times over the trained length stay, those that turn less than
    ``beta_slow`` times are divided by ``factor``, and those between are blended; ``truncate`` rounds the two bounds to
    whole frequencies. Cosines and sines are multiplied by ``attention_factor``.
    """

    factor: float
    original_max_position_embeddings: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    @property
    def max_positions(self) -> int:
        """Positions that the scaling is made for."""
        return int(self.factor * self.original_max_position_embeddings)


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position embedding: base ``theta``, scaled by ``yarn`` if that is set. Where positions have three rows,
    ``mrope_section`` has the frequencies of time, height and width, which take turns as THWTHW… (spec section 5.1)."""

    theta: float
    mrope_section: tuple[int, ...] | None = None
    yarn: YarnConfig | None = None

    def describe(self) -> str:
        """How positions are scaled, in brackets after their number; empty if they are not."""
        if self.yarn is None:
            return ""
        return f" (YaRN, {self.yarn.factor:g} times {self.yarn.original_max_position_embeddings})"


def read_rope(
    reader: ConfigReader, head_dim: int, max_position_embeddings: int, *, default_theta: float, multimodal: bool
) -> RopeConfig:
    """The rotary positions of a ``config.json`` or section, read as transformers 5.23 does.

    transformers 4 writes ``rope_theta`` beside ``rope_scaling``; transformers 5 has all in ``rope_parameters``. Where
    both objects are set transformers takes ``rope_scaling`` alone; here that is refused if it loses a setting.
    ``default_theta``: base where none is given. ``multimodal``: positions have three rows.

    Raises:
        UnsupportedModel: a kind of scaling other than YaRN, or a key that is not known.
        CorruptFile: a value outside its rule, or two names with different meanings.
    """
    rope = _Rope(reader, head_dim, max_position_embeddings, default_theta, multimodal)
    newer, older = reader.section("rope_parameters"), reader.section("rope_scaling")
    reader.ignore("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
    if not newer or not newer.raw or not older or not older.raw:
        empty = ConfigReader({}, reader.path, allow_unknown=reader.allow_unknown)
        return rope.read(older if older and older.raw else newer or empty)
    both = f"{reader.path}: rope_parameters and rope_scaling"
    kinds = {"rope_type", "type"} if {"rope_type", "type"} & older.raw.keys() else set()
    laid_over = {**{key: value for key, value in newer.raw.items() if key not in kinds}, **older.raw}
    chosen = rope.read(older)
    if chosen != rope.read(ConfigReader(laid_over, both, allow_unknown=reader.allow_unknown)):
        rule = "are both set, and rope_scaling, which transformers takes, leaves out what rope_parameters says"
        raise CorruptFile(both, f"{rule}; keep one of them, with all settings in it")
    return chosen


@dataclass(frozen=True, slots=True)
class _Rope:
    """The section around the rotary settings, as `read_rope` needs it."""

    around: ConfigReader
    head_dim: int
    max_position_embeddings: int
    default_theta: float
    multimodal: bool

    def read(self, section: ConfigReader) -> RopeConfig:
        theta_source = section if section.raw.get("rope_theta") is not None else self.around
        theta = theta_source.number("rope_theta", 1.0, 1e12, default=self.default_theta)
        section.ignore("rope_theta", "finetuned")
        for reader in (self.around, section):
            _require_whole_heads(reader)
        kind = self._kind(section)
        yarn = self._yarn(section) if kind == "yarn" else None
        section.ignore("original_max_position_embeddings", *_YARN_KEYS)
        if kind != "yarn":
            _require_factor_one(section, kind)
        axes = self._mrope_section(section)
        section.refuse_unread()
        return RopeConfig(theta, axes, yarn)

    def _kind(self, section: ConfigReader) -> str:
        """The kind of scaling; transformers reads ``type``, its older name, only where ``rope_type`` is not set."""
        section.ignore("rope_type", "type")
        kind = section.raw.get("rope_type") or section.raw.get("type") or "default"
        by_type = [key for key in section.raw if str(key).endswith("_attention")]
        if by_type:
            raise UnsupportedModel(
                f"{section.path}: settings by layer type, {by_type[:4]!r:.80}, are not supported; "
                "supported: one for all layers"
            )
        if kind in _UNSCALED_AT_FACTOR_ONE and section.raw.get("factor") == 1:
            return "default"
        if kind not in (*_UNSCALED, "yarn"):
            raise UnsupportedModel(
                f"{self.around.path}: RoPE scaling type {kind!r:.80} is not supported; supported: "
                "default (no scaling), yarn"
            )
        return str(kind)

    def _yarn(self, section: ConfigReader) -> YarnConfig:
        """transformers gives a model's own original_max_position_embeddings precedence over the one in the section, and
        takes max_position_embeddings where there is neither."""
        places = [place for place in (self.around, section) if place.raw.get("original_max_position_embeddings")]
        original = self.max_position_embeddings
        if places:
            original = places[0].integer("original_max_position_embeddings", 1, 1 << 26)
        implied = max(1.0, self.max_position_embeddings / original)
        factor = section.number("factor", 0.0, _LARGEST_FACTOR, default=implied)
        if factor < 1:
            raise CorruptFile(section.path, "factor of YaRN must be at least 1", found=factor)
        beta_fast, beta_slow = (
            section.number(key, 0.0, 1e6, default=default) if section.raw.get(key) else default
            for key, default in (("beta_fast", 32.0), ("beta_slow", 1.0))
        )
        if beta_fast < beta_slow:
            raise CorruptFile(section.path, f"beta_fast must be at least beta_slow {beta_slow:g}", found=beta_fast)
        return YarnConfig(
            factor=factor,
            original_max_position_embeddings=original,
            attention_factor=_attention_factor(section, factor),
            beta_fast=beta_fast,
            beta_slow=beta_slow,
            truncate=section.boolean("truncate", default=True),
        )

    def _mrope_section(self, section: ConfigReader) -> tuple[int, ...] | None:
        """Of a model with three rows of positions; for text the keys change nothing. The released model's code knows
        only the interleaved order, whatever the two names of that switch say."""
        section.one_name("mrope_interleaved", "interleaved")
        interleaved = section.boolean("mrope_interleaved", default=True)
        counts = section.integers("mrope_section", 0, 4096)
        if not self.multimodal:
            return None
        if not interleaved:
            raise UnsupportedModel(f"{section.path}: mrope_interleaved false is not supported; supported: true")
        frequencies = self.head_dim // 2
        if not counts:
            turns = (len(range(axis, min(3 * _RELEASED_MROPE_SECTION[axis], frequencies), 3)) for axis in (1, 2))
            height, width = turns
            return frequencies - height - width, height, width
        if len(counts) != 3 or sum(counts) != frequencies:
            rule = f"mrope_section must be three counts that add up to head_dim / 2 = {frequencies}"
            raise CorruptFile(section.path, rule, found=list(counts))
        if 3 * max(counts[1:]) > frequencies:
            rule = f"mrope_section: height and width can take every third of {frequencies} frequencies"
            raise CorruptFile(section.path, rule, found=list(counts))
        return counts


def _attention_factor(section: ConfigReader, factor: float) -> float:
    """As given, else 0.1 ln(factor) + 1 (section 3.4 of the paper); DeepSeek's configs weigh the logarithm by
    ``mscale``, and divide by the same with ``mscale_all_dim``."""
    if section.raw.get("attention_factor") is not None:
        return section.number("attention_factor", 0.0, _LARGEST_FACTOR)

    def weighed(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0

    if section.raw.get("mscale") and section.raw.get("mscale_all_dim"):
        return weighed(section.number("mscale", 0.0, 1e6)) / weighed(section.number("mscale_all_dim", 0.0, 1e6))
    return weighed(1.0)


def _require_factor_one(section: ConfigReader, kind: str) -> None:
    factor = section.raw.get("factor")
    section.ignore("factor")
    if factor is not None and factor != 1:
        raise UnsupportedModel(
            f"{section.path}: factor {factor!r:.40} with rope_type {kind} is not supported, as it would do nothing; "
            "name the kind of scaling (yarn) or leave factor out"
        )


def _require_whole_heads(reader: ConfigReader) -> None:
    part = reader.raw.get("partial_rotary_factor")
    reader.ignore("partial_rotary_factor")
    if part is not None and part != 1:
        raise UnsupportedModel(f"{reader.path}: partial_rotary_factor {part!r:.40} is not supported; supported: 1")
