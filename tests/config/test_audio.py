"""The audio encoder's section of a config.json, the features' numbers, and the counts that follow from them."""

from __future__ import annotations

import json

import pytest

from lluda.config.audio import RELEASED_MEL, AudioEncoderConfig, MelConfig, read_audio_encoder
from lluda.config.reader import ConfigReader
from lluda.errors import CorruptFile, UnsupportedModel

MODEL = "Qwen3-Omni-30B-A3B-Instruct"
SECTION = {
    "num_mel_bins": 128, "d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120,
    "downsample_hidden_size": 480, "output_dim": 2048, "n_window": 50, "n_window_infer": 800,
}  # fmt: skip


def read(section: dict) -> AudioEncoderConfig:
    return read_audio_encoder(ConfigReader(section, "config.json: audio_config"))


def test_the_released_section(released_config):
    config = read(released_config(MODEL)["thinker_config"]["audio_config"])
    assert config == AudioEncoderConfig(**SECTION)
    assert (config.chunk_frames, config.block_frames, config.block_tokens, config.convolved_bins) == (100, 800, 104, 16)


@pytest.mark.parametrize(("frames", "tokens"), [
    (0, 0), (1, 1), (9, 2), (50, 7), (99, 13), (100, 13), (101, 14), (150, 20), (1000, 130), (3000, 390), (30000, 3900),
])  # fmt: skip
def test_token_counts_of_the_specification(frames, tokens):
    assert read(SECTION).tokens(frames) == tokens


@pytest.mark.parametrize(("change", "error", "words"), [
    ({"window_kind": "causal"}, UnsupportedModel, "window_kind"),
    ({"activation_function": "silu"}, UnsupportedModel, "activation_function 'silu'"),
    ({"n_window_infer": 850}, CorruptFile, "multiple of a chunk's 100 frames"),
    ({"encoder_attention_heads": 3}, CorruptFile, "encoder_attention_heads 3"),
    ({"num_hidden_layers": 31}, CorruptFile, "encoder_layers"),
    ({"max_source_positions": 12}, CorruptFile, "13 tokens"),
    ({"d_model": "1280"}, CorruptFile, "d_model must be an integer"),
])  # fmt: skip
def test_what_would_change_the_maths_is_refused(change, error, words):
    with pytest.raises(error, match=words):
        read(SECTION | change)


def test_the_released_preprocessor(released_configs):
    raw = json.loads((released_configs / MODEL / "preprocessor_config.reconstructed.json").read_text())
    assert MelConfig.from_hf(raw) == RELEASED_MEL
    assert RELEASED_MEL.min_samples == 201
    assert RELEASED_MEL.frames(16159) == 100


@pytest.mark.parametrize(("change", "error"), [
    ({"dither": 0.1}, UnsupportedModel), ({"feature_extractor_type": "SeamlessM4T"}, UnsupportedModel),
    ({"hop_length": 200}, CorruptFile), ({"n_fft": 401}, CorruptFile), ({"feature_size": 0}, CorruptFile),
])  # fmt: skip
def test_other_features_are_refused(change, error):
    with pytest.raises(error):
        MelConfig.from_hf(change)
