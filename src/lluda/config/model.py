"""Frozen configurations, one per component, read strictly from a released ``config.json``.

Every number of a model comes from its config; nothing is hard-coded. A key that changes the maths and is not known here
is an error (:class:`UnsupportedModel`), as is every value outside its rule (:class:`CorruptFile`), before anything is
allocated. The file is the one thing this module knows about disk: its name, for error messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lluda.config.decoder import DecoderConfig, read_decoder
from lluda.config.omni import THINKER_TYPE, OmniConfig, read_omni, whole_omni
from lluda.config.reader import ConfigReader
from lluda.errors import InvalidRequest, UnsupportedModel

SUPPORTED_MODEL_TYPES = ("qwen3", "qwen3_moe", "llama", "qwen3_omni_moe", THINKER_TYPE)

DTypeName = Literal["bf16", "f32", "f64"]
DTYPE_NAMES: tuple[DTypeName, ...] = ("bf16", "f32", "f64")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A model: its type, its decoder (an Omni model's thinker), the dtype its weights were released in, its end-of-text
    ids, and what an Omni model has besides."""

    model_type: str
    text: DecoderConfig
    dtype: DTypeName
    eos_token_ids: tuple[int, ...]
    omni: OmniConfig | None = None

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any], path: str = "config.json", *, allow_unknown: bool = False) -> ModelConfig:
        """Read a Hugging Face ``config.json`` dictionary.

        ``path`` names the file in errors; ``allow_unknown`` accepts keys that are not known to be harmless.

        Raises:
            UnsupportedModel: an architecture, feature or key lluda does not implement.
            CorruptFile: a value outside its rule.
        """
        for key in ("auto_map", "model_file"):
            if raw.get(key):
                raise UnsupportedModel(
                    f"{path}: {key} asks for code shipped with the checkpoint; lluda never runs such code. "
                    f"Supported model types: {', '.join(SUPPORTED_MODEL_TYPES)}"
                )
        raw = whole_omni(raw)
        reader = ConfigReader(raw, path, allow_unknown=allow_unknown)
        model_type = raw.get("model_type")
        if model_type not in SUPPORTED_MODEL_TYPES:
            raise UnsupportedModel(
                f"{path}: model_type {model_type!r:.80} is not supported; supported: {', '.join(SUPPORTED_MODEL_TYPES)}"
            )
        reader.ignore("auto_map", "model_file")
        reader.refuse_quantization()
        is_omni = model_type == "qwen3_omni_moe"
        decoder, omni = read_omni(reader) if is_omni else (read_decoder(reader, model_type), None)
        config = cls(
            model_type=model_type,
            text=decoder,
            dtype=_released_dtype(reader, is_omni=is_omni),
            eos_token_ids=_end_ids(reader, is_omni=is_omni),
            omni=omni,
        )
        reader.refuse_unread()
        return config


def resolve_dtype(requested: str, released: DTypeName) -> DTypeName:
    """The dtype to compute in: ``auto`` keeps the released one. Raises InvalidRequest for a name that is none."""
    if requested == "auto":
        return released
    for name in DTYPE_NAMES:
        if requested == name:
            return name
    raise InvalidRequest(f"dtype {requested!r} is not one of auto, {', '.join(DTYPE_NAMES)}")


def _end_ids(reader: ConfigReader, *, is_omni: bool) -> tuple[int, ...]:
    """Ids that end a text. The released Omni configs name the end of a turn, and no end of text; a fine-tune may name
    one, in any of the places where its settings may stand."""
    turn = reader.token_ids("im_end_token_id") if is_omni else ()
    ends = (one for section in _places(reader, is_omni=is_omni) for one in section.token_ids("eos_token_id"))
    return tuple(dict.fromkeys((*turn, *ends)))


def _released_dtype(reader: ConfigReader, *, is_omni: bool) -> DTypeName:
    """bfloat16 checkpoints compute in BF16; float16 and float32 ones in F32, which holds both exactly."""
    for section in _places(reader, is_omni=is_omni):
        for key in ("dtype", "torch_dtype"):
            name = section.choice(key, ("bfloat16", "float32", "float16"), default="")
            if name:
                return "bf16" if name == "bfloat16" else "f32"
    return "bf16"


def _places(reader: ConfigReader, *, is_omni: bool) -> list[ConfigReader]:
    """Where a setting of the text may stand: an Omni config may say it at its top, in its thinker's section, or in
    that one's text alone."""
    if not is_omni:
        return [reader]
    thinker = reader.required_section("thinker_config")
    return [reader, thinker, thinker.required_section("text_config")]
