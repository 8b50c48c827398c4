"""The configuration of the talker and its code predictor (spec sections 6 and 7)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from lluda.config.decoder import DecoderConfig, read_decoder
from lluda.config.reader import ConfigReader
from lluda.errors import CorruptFile

_MAX_ID = 1 << 24

POSITIONS_PER_SECOND = 25
"""What transformers' classes of thinker and talker have where position_id_per_seconds is absent."""


@dataclass(frozen=True, slots=True)
class CodecTokens:
    """Ids of the talker's vocabulary that are no codes: what its prompt is made of, and the end of speech."""

    bos: int
    eos: int
    pad: int
    nothink: int
    think_bos: int
    think_eos: int


@dataclass(frozen=True, slots=True)
class TalkerConfig:
    """``decoder`` writes codebook 0; ``code_predictor`` the other ``num_code_groups - 1`` of each frame.

    ``accept_hidden_layer``: the thinker's layer whose input represents media; ``thinker_hidden_size``: its width;
    ``position_id_per_seconds``: as the thinker's, for the talker's own positions.
    ``speakers``: id by lower-case name, in the config's order.
    """

    decoder: DecoderConfig
    code_predictor: DecoderConfig
    num_code_groups: int
    thinker_hidden_size: int
    accept_hidden_layer: int
    position_id_per_seconds: int
    codec: CodecTokens
    speakers: Mapping[str, int]


def read_talker(reader: ConfigReader) -> TalkerConfig:
    """From the ``talker_config`` section. UnsupportedModel, CorruptFile: a key or value outside its rule."""
    groups = reader.integer("num_code_groups", 2, 256)
    decoder = _decoder(reader, "text_config", "qwen3_omni_moe_talker_text", groups)
    predictor = _decoder(reader, "code_predictor_config", "qwen3_omni_moe_talker_code_predictor", groups)
    if predictor.hidden_size != decoder.hidden_size:
        rule = f"code_predictor_config: hidden_size must be the talker's {decoder.hidden_size}"
        raise CorruptFile(reader.path, rule, found=predictor.hidden_size)
    config = TalkerConfig(
        decoder=decoder,
        code_predictor=predictor,
        num_code_groups=groups,
        thinker_hidden_size=reader.integer("thinker_hidden_size", 1, 1 << 20),
        accept_hidden_layer=reader.integer("accept_hidden_layer", 0, 4096),
        position_id_per_seconds=reader.integer("position_id_per_seconds", 1, 1 << 16, default=POSITIONS_PER_SECOND),
        codec=_codec_tokens(reader, decoder.vocab_size),
        speakers=_speakers(reader, decoder.vocab_size),
    )
    # Of the media ids and the merging of patches the thinker's own copies are used.
    reader.ignore(
        *(f"{name}_token_id" for name in ("audio", "audio_start", "audio_end", "image", "video", "vision_start")),
        *("seconds_per_chunk", "spatial_merge_size"),
    )
    reader.forbid("tie_word_embeddings")
    reader.refuse_unread()
    return config


def _decoder(reader: ConfigReader, key: str, model_type: str, groups: int) -> DecoderConfig:
    section = reader.required_section(key)
    # Nothing is tied here: embeddings and heads have names of their own.
    section.forbid("tie_word_embeddings")
    decoder = read_decoder(section, model_type)
    if section.integer("num_code_groups", 1, 256, default=groups) != groups:
        rule = f"num_code_groups must be the talker's {groups}"
        raise CorruptFile(section.path, rule, found=section.raw["num_code_groups"])
    section.refuse_unread()
    return decoder


def _codec_tokens(reader: ConfigReader, vocabulary: int) -> CodecTokens:
    names = {"eos": "codec_eos_token_id"}
    fields = CodecTokens.__dataclass_fields__
    return CodecTokens(
        **{name: reader.integer(names.get(name, f"codec_{name}_id"), 0, vocabulary - 1) for name in fields}
    )


def _speakers(reader: ConfigReader, vocabulary: int) -> Mapping[str, int]:
    section = reader.section("speaker_id")
    if section is None or not section.raw:
        raise CorruptFile(reader.path, "speaker_id must name at least one speaker")
    return MappingProxyType({str(name).lower(): section.integer(name, 0, vocabulary - 1) for name in section.raw})
