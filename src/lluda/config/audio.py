"""Configuration of the audio encoder and of its features, and the limits of a recording.

The encoder's come from ``thinker_config.audio_config`` of a ``config.json``, the features' from the processor's files
beside it (spec section 3; `lluda.weights.media_settings`); both are read strictly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lluda.config.reader import ConfigReader
from lluda.errors import CorruptFile, UnsupportedModel

# Nothing here is tied; conv_chunksize only splits the convolutions; scale_embedding is read by no released
# implementation of this encoder.
_UNUSED_AUDIO_KEYS = ("conv_chunksize", "scale_embedding", "tie_word_embeddings")

# Names that transformers takes for the same numbers.
_OTHER_NAMES = {
    "d_model": "hidden_size",
    "encoder_attention_heads": "num_attention_heads",
    "encoder_ffn_dim": "intermediate_size",
    "encoder_layers": "num_hidden_layers",
}


@dataclass(frozen=True, slots=True)
class AudioEncoderConfig:
    """The audio encoder (spec sections 3.2 to 3.4).

    Log-mel frames come in chunks of ``2 * n_window`` that are convolved alone; ``n_window_infer`` frames are one block
    of attention. ``downsample_hidden_size``: channels of the three convolutions; ``output_dim``: width of what the
    decoder is given.
    """

    num_mel_bins: int
    d_model: int
    encoder_layers: int
    encoder_attention_heads: int
    encoder_ffn_dim: int
    downsample_hidden_size: int
    output_dim: int
    n_window: int
    n_window_infer: int

    @property
    def chunk_frames(self) -> int:
        """Log-mel frames of a whole chunk (100: one second)."""
        return 2 * self.n_window

    @property
    def block_frames(self) -> int:
        """Log-mel frames of a whole block of attention (800: eight seconds)."""
        return self.n_window_infer

    @property
    def block_tokens(self) -> int:
        """Tokens of a whole block of attention (104)."""
        return self.tokens(self.block_frames)

    @property
    def convolved_bins(self) -> int:
        """Mel bins left after the three convolutions (16 of 128)."""
        return halved(self.num_mel_bins)

    def tokens(self, frames: int) -> int:
        """Rows the encoder makes of ``frames`` log-mel frames of one recording (spec section 3.3): each chunk's frames
        halved three times, rounding up."""
        chunks, rest = divmod(frames, self.chunk_frames)
        return chunks * halved(self.chunk_frames) + halved(rest)


def halved(length: int) -> int:
    """What three convolutions of stride 2, width 3 and padding 1 leave of ``length``: an eighth, rounded up."""
    return -(-length // 8)


def read_audio_encoder(reader: ConfigReader) -> AudioEncoderConfig:
    """The audio encoder of an ``audio_config`` section, every key of which must be known.

    Raises:
        UnsupportedModel: an activation or key that is not implemented.
        CorruptFile: a value outside its rule.
    """
    reader.choice("activation_function", ("gelu",), default="gelu", unsupported=True)
    for name, other in _OTHER_NAMES.items():
        reader.one_name(name, other)
    config = AudioEncoderConfig(
        num_mel_bins=reader.integer("num_mel_bins", 1, 4096),
        d_model=reader.integer("d_model", 4, 1 << 20),
        encoder_layers=reader.integer("encoder_layers", 1, 4096),
        encoder_attention_heads=reader.integer("encoder_attention_heads", 1, 4096),
        encoder_ffn_dim=reader.integer("encoder_ffn_dim", 1, 1 << 22),
        downsample_hidden_size=reader.integer("downsample_hidden_size", 1, 1 << 20),
        output_dim=reader.integer("output_dim", 1, 1 << 20),
        n_window=reader.integer("n_window", 1, 1 << 16),
        n_window_infer=reader.integer("n_window_infer", 2, 1 << 20),
    )
    _check(config, reader)
    reader.ignore(*_UNUSED_AUDIO_KEYS)
    reader.refuse_unread()
    return config


def _check(config: AudioEncoderConfig, reader: ConfigReader) -> None:
    """The rules between numbers; ``max_source_positions`` is the length of the table of positions."""
    if config.d_model % config.encoder_attention_heads or config.d_model % 2:
        rule = f"d_model must be even and a multiple of encoder_attention_heads {config.encoder_attention_heads}"
        raise CorruptFile(reader.path, rule, found=config.d_model)
    if config.n_window_infer % config.chunk_frames:
        rule = f"n_window_infer must be a multiple of a chunk's {config.chunk_frames} frames (2 * n_window)"
        raise CorruptFile(reader.path, rule, found=config.n_window_infer)
    positions = reader.integer("max_source_positions", 1, 1 << 20, default=1500)
    if halved(config.chunk_frames) > positions:
        rule = f"a chunk of {halved(config.chunk_frames)} tokens must fit max_source_positions"
        raise CorruptFile(reader.path, rule, found=positions)


@dataclass(frozen=True, slots=True)
class MelConfig:
    """Log-mel features (spec section 3.1). The defaults are the released ``preprocessor_config.json``'s.

    ``sampling_rate`` in Hz; ``n_fft`` and ``hop_length`` in samples; ``num_mel_bins`` bands up to half the rate.
    """

    sampling_rate: int = 16000
    n_fft: int = 400
    hop_length: int = 160
    num_mel_bins: int = 128

    @property
    def min_samples(self) -> int:
        """The shortest recording that has features: its ends are mirrored over half a window."""
        return max(self.n_fft // 2 + 1, self.hop_length)

    def frames(self, samples: int) -> int:
        """Log-mel frames of a recording of ``samples``."""
        return samples // self.hop_length

    @classmethod
    def from_hf(
        cls,
        raw: Mapping[str, Any],
        path: str = "preprocessor_config.json",
        encoder: AudioEncoderConfig | None = None,
    ) -> MelConfig:
        """Read the audio settings; keys of image settings are ignored. ``encoder`` gives the number of bands
        where it is left out, and must agree where it is not; the rest has the released values, which are the defaults
        of transformers' feature extractor too.

        Raises:
            UnsupportedModel: another kind of features, dithering, or padding with anything but silence.
            CorruptFile: a value outside its rule, or other bands than the encoder's.
        """
        bands = encoder.num_mel_bins if encoder else RELEASED_MEL.num_mel_bins
        reader = ConfigReader(raw, path)
        kind = "WhisperFeatureExtractor"
        reader.choice("feature_extractor_type", (kind,), default=kind, unsupported=True)
        for key in ("dither", "padding_value"):
            if raw.get(key):
                raise UnsupportedModel(f"{path}: {key} {raw[key]!r:.80} is not supported; supported: 0")
        config = cls(
            sampling_rate=reader.integer("sampling_rate", 1000, 1 << 20, default=RELEASED_MEL.sampling_rate),
            n_fft=reader.integer("n_fft", 4, 1 << 16, default=RELEASED_MEL.n_fft),
            hop_length=reader.integer("hop_length", 1, 1 << 16, default=RELEASED_MEL.hop_length),
            num_mel_bins=reader.integer("feature_size", 1, 4096, default=bands),
        )
        if encoder and config.num_mel_bins != bands:
            rule = "feature_size must be the num_mel_bins of config.json's audio_config"
            raise CorruptFile(path, rule, expected=bands, found=config.num_mel_bins)
        if config.n_fft % 2 or config.hop_length >= config.n_fft // 2:
            rule = "n_fft must be even, and hop_length less than half of it"
            raise CorruptFile(path, rule, found=f"n_fft {config.n_fft}, hop_length {config.hop_length}")
        return config


RELEASED_MEL = MelConfig()


@dataclass(frozen=True, slots=True)
class AudioLimits:
    """What is taken as a recording; all else is refused before memory is taken for it.

    | limit | value | why |
    |---|---|---|
    | ``max_seconds`` | 4 hours | the released decoder's 65,536 positions hold 84 minutes |
    | ``max_file_bytes`` | 16 GiB | four hours of 64-bit stereo at 192 kHz, and videos with an audio track |
    | ``min_rate``, ``max_rate`` | 1 to 768 kHz | all that recorders make; no header above that is true |
    | ``max_channels`` | 64 | the same |
    | ``max_amplitude`` | 256 | full scale is 1; larger are integers that were not scaled |
    | ``missing_seconds`` | 0.5 | by how much a recording may be shorter than its header says |
    """

    max_seconds: int = 4 * 3600
    max_file_bytes: int = 16 << 30
    min_rate: int = 1000
    max_rate: int = 768_000
    max_channels: int = 64
    max_amplitude: float = 256.0
    missing_seconds: float = 0.5


AUDIO_LIMITS = AudioLimits()
