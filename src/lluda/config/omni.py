"""The configuration of a Qwen3-Omni checkpoint: the thinker's decoder, its encoders, and the ids that bind them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lluda.config.audio import AudioEncoderConfig, read_audio_encoder
from lluda.config.code2wav import Code2WavConfig, read_code2wav
from lluda.config.decoder import DecoderConfig, read_decoder
from lluda.config.reader import ConfigReader
from lluda.config.talker import POSITIONS_PER_SECOND, TalkerConfig, read_talker
from lluda.config.vision import VisionEncoderConfig, read_vision_encoder
from lluda.errors import CorruptFile

_MAX_ID = 1 << 24
THINKER_TYPE = "qwen3_omni_moe_thinker"


@dataclass(frozen=True, slots=True)
class MediaTokens:
    """Ids of the markers around media and of the placeholders, one for each encoder row (spec section 10)."""

    audio_start: int
    audio_pad: int
    audio_end: int
    vision_start: int
    image_pad: int
    video_pad: int
    vision_end: int


@dataclass(frozen=True, slots=True)
class SpeechTokens:
    """Ids from which the talker's prompt is cut and made (spec section 6.2)."""

    im_start: int
    user: int
    assistant: int
    tts_bos: int
    tts_eos: int
    tts_pad: int


@dataclass(frozen=True, slots=True)
class SpeechConfig:
    """The half of a checkpoint that speaks."""

    talker: TalkerConfig
    code2wav: Code2WavConfig
    tokens: SpeechTokens


@dataclass(frozen=True, slots=True)
class OmniConfig:
    """What an Omni model has beside the thinker's decoder. ``position_id_per_seconds``: positions that a second of
    video takes (spec section 5.2). ``speech`` is None for checkpoints that only answer in text."""

    audio: AudioEncoderConfig
    vision: VisionEncoderConfig
    tokens: MediaTokens
    position_id_per_seconds: int
    speech: SpeechConfig | None


def whole_omni(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The ``config.json`` of a thinker saved by itself as that of a model that does not speak; any other as it is."""
    if raw.get("model_type") != THINKER_TYPE:
        return raw
    return {"model_type": "qwen3_omni_moe", "enable_audio_output": False, "thinker_config": raw}


def read_omni(reader: ConfigReader) -> tuple[DecoderConfig, OmniConfig]:
    """The thinker's decoder and the rest, from a ``config.json`` of type qwen3_omni_moe.

    UnsupportedModel, CorruptFile: as :meth:`lluda.config.model.ModelConfig.from_hf`, for each section.
    """
    thinker = reader.required_section("thinker_config")
    text = thinker.required_section("text_config")
    decoder = read_decoder(text, "qwen3_omni_moe_text")
    text.refuse_unread()
    # transformers 4 looks at the text's switch, transformers 5 at the thinker's, which it always writes.
    tied = thinker.boolean("tie_word_embeddings", default=decoder.tie_word_embeddings)
    decoder = replace(decoder, tie_word_embeddings=tied)
    audio = read_audio_encoder(thinker.required_section("audio_config"))
    vision = read_vision_encoder(thinker.required_section("vision_config"))
    for name, width in (("audio_config: output_dim", audio.output_dim), ("vision_config", vision.out_hidden_size)):
        if width != decoder.hidden_size:
            rule = f"{name}: the encoder must give rows as wide as the decoder's hidden_size {decoder.hidden_size}"
            raise CorruptFile(thinker.path, rule, found=width)
    omni = OmniConfig(
        audio=audio,
        vision=vision,
        tokens=_media_tokens(thinker),
        position_id_per_seconds=thinker.integer("position_id_per_seconds", 1, 1 << 16, default=POSITIONS_PER_SECOND),
        speech=_speech(reader, decoder, vision),
    )
    thinker.ignore("seconds_per_chunk", "user_token_id")
    thinker.refuse_unread()
    reader.ignore("system_token_id", "im_end_token_id", "tie_word_embeddings")
    return decoder, omni


def _speech(reader: ConfigReader, thinker: DecoderConfig, vision: VisionEncoderConfig) -> SpeechConfig | None:
    tokens = {name: f"{name}_token_id" for name in SpeechTokens.__dataclass_fields__}
    talker, code2wav = reader.section("talker_config"), reader.section("code2wav_config")
    speaks = reader.boolean("enable_audio_output", default=talker is not None)
    if not speaks or talker is None or code2wav is None:
        if speaks:
            raise CorruptFile(
                reader.path, "enable_audio_output is true, but talker_config or code2wav_config is missing"
            )
        reader.ignore(*tokens.values())
        return None
    merged = vision.spatial_merge_size
    if talker.integer("spatial_merge_size", 1, 64, default=merged) != merged:
        rule = f"spatial_merge_size must be the vision encoder's {merged}"
        raise CorruptFile(talker.path, rule, found=talker.raw["spatial_merge_size"])
    config = SpeechConfig(
        talker=read_talker(talker),
        code2wav=read_code2wav(code2wav),
        tokens=SpeechTokens(**{name: reader.integer(key, 0, _MAX_ID) for name, key in tokens.items()}),
    )
    if config.talker.thinker_hidden_size != thinker.hidden_size:
        rule = f"talker_config: thinker_hidden_size must be the thinker's hidden_size {thinker.hidden_size}"
        raise CorruptFile(reader.path, rule, found=config.talker.thinker_hidden_size)
    if config.talker.accept_hidden_layer > thinker.num_hidden_layers:
        rule = f"talker_config: accept_hidden_layer must be one of the thinker's {thinker.num_hidden_layers} layers"
        raise CorruptFile(reader.path, rule, found=config.talker.accept_hidden_layer)
    return config


def _media_tokens(thinker: ConfigReader) -> MediaTokens:
    names = {"audio_pad": "audio_token_id", "image_pad": "image_token_id", "video_pad": "video_token_id"}
    fields = MediaTokens.__dataclass_fields__
    return MediaTokens(**{name: thinker.integer(names.get(name, f"{name}_token_id"), 0, _MAX_ID) for name in fields})
