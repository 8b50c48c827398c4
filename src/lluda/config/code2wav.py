"""The configuration of code2wav, which makes a waveform of the talker's codes (spec section 8)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from lluda.config.decoder import DecoderConfig, read_decoder
from lluda.config.reader import ConfigReader
from lluda.errors import CorruptFile

SAMPLE_RATE = 24000
"""Samples a second of the released vocoder: from the model card, as no config says it."""

_MAX_SAMPLES_PER_FRAME = 1 << 16
_MAX_STAGES = 16

# What the released section holds beside the numbers that are used: how it was trained, and its quantiser's sizes.
_UNUSED_KEYS = (
    *("codebook_dim", "semantic_codebook_size", "num_semantic_quantizers", "vector_quantization_hidden_dimension"),
    "layer_scale_initial_scale",
)


@dataclass(frozen=True, slots=True)
class Code2WavConfig:
    """``transformer`` runs over frames; each of ``upsampling_ratios`` and then ``upsample_rates`` multiplies the rows.

    A frame is ``num_quantizers`` codes below ``codebook_size``. The convolutions begin ``decoder_dim`` wide, and every
    block of ``upsample_rates`` halves that. Positions are not limited: the transformer sees a window.
    """

    transformer: DecoderConfig
    codebook_size: int
    num_quantizers: int
    upsampling_ratios: tuple[int, ...]
    upsample_rates: tuple[int, ...]
    decoder_dim: int

    @property
    def window(self) -> int:
        """Frames that a layer of the transformer sees, the newest included."""
        window = self.transformer.sliding_window
        assert window is not None, "read_code2wav requires it"
        return window

    @property
    def samples_per_frame(self) -> int:
        """Samples that each frame adds (released: 1920)."""
        return prod(self.upsampling_ratios) * prod(self.upsample_rates)

    @property
    def look_ahead(self) -> int:
        """Samples by which the waveform is shorter than its frames, since each waits for so many later ones (released:
        555). Every block of ``upsample_rates`` makes ``(n - 1) * rate`` rows of ``n`` (spec section 8.1)."""
        missing = 0
        for rate in self.upsample_rates:
            missing = (missing + 1) * rate
        return missing

    def samples(self, frames: int) -> int:
        """Length of the waveform of ``frames`` frames."""
        return max(0, self.samples_per_frame * frames - self.look_ahead)


def read_code2wav(reader: ConfigReader) -> Code2WavConfig:
    """From the ``code2wav_config`` section. UnsupportedModel, CorruptFile: a key or value outside its rule."""
    codebook_size = reader.integer("codebook_size", 1, 1 << 20)
    num_quantizers = reader.integer("num_quantizers", 1, 256)
    # The block is the common one; what its class fixes for this component is in no config.
    reader = reader.fixed(vocab_size=codebook_size * num_quantizers, use_qk_norm=False)
    reader.integer("sliding_window", 1, 1 << 16)
    config = Code2WavConfig(
        transformer=replace(read_decoder(reader, "qwen3_omni_moe_code2wav"), layer_scale=True),
        codebook_size=codebook_size,
        num_quantizers=num_quantizers,
        upsampling_ratios=reader.integers("upsampling_ratios", 1, 64),
        upsample_rates=reader.integers("upsample_rates", 1, 64),
        decoder_dim=reader.integer("decoder_dim", 1, 1 << 16),
    )
    _check(config, reader.path)
    reader.ignore("codebook_size", "num_quantizers", *_UNUSED_KEYS)
    reader.refuse_unread()
    return config


def _check(config: Code2WavConfig, path: str) -> None:
    for name in ("upsampling_ratios", "upsample_rates"):
        if len(getattr(config, name)) > _MAX_STAGES:
            raise CorruptFile(path, f"{name} must hold at most {_MAX_STAGES} numbers", found=len(getattr(config, name)))
    if not config.upsample_rates:
        raise CorruptFile(path, "upsample_rates must hold at least one rate")
    if config.samples_per_frame > _MAX_SAMPLES_PER_FRAME:
        rule = f"upsampling_ratios and upsample_rates must multiply to at most {_MAX_SAMPLES_PER_FRAME}"
        raise CorruptFile(path, rule, found=config.samples_per_frame)
    halvings = 1 << len(config.upsample_rates)
    if config.decoder_dim % halvings:
        rule = f"decoder_dim must be a multiple of {halvings}: each of the upsample_rates halves it"
        raise CorruptFile(path, rule, found=config.decoder_dim)
