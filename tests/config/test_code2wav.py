"""The code2wav section: what is read, what follows from it, what is refused."""

from __future__ import annotations

import pytest

from lluda.config.code2wav import SAMPLE_RATE, read_code2wav
from lluda.config.reader import ConfigReader
from lluda.errors import CorruptFile, UnsupportedModel

SMALL = {
    "codebook_size": 32,
    "num_quantizers": 4,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 100,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000,
    "sliding_window": 5,
    "decoder_dim": 32,
    "upsample_rates": [3, 2],
    "upsampling_ratios": [2, 2],
}


def config(**changes):
    return read_code2wav(ConfigReader(SMALL | changes, "config.json: code2wav_config"))


def test_the_released_section(released_config):
    raw = released_config("Qwen3-Omni-30B-A3B-Instruct")["code2wav_config"]
    released = read_code2wav(ConfigReader(raw, "config.json"))
    assert (released.num_quantizers, released.codebook_size, released.decoder_dim) == (16, 2048, 1536)
    assert (released.window, released.transformer.num_hidden_layers, released.transformer.head_dim) == (72, 8, 64)
    assert released.transformer.layer_scale and not released.transformer.use_qk_norm
    assert (released.samples_per_frame, released.look_ahead) == (1920, 555)
    assert SAMPLE_RATE / released.samples_per_frame == 12.5
    assert [released.samples(frames) for frames in (0, 1, 2, 25)] == [0, 1365, 3285, 47445]


def test_lengths_follow_from_the_rates():
    assert (config().samples_per_frame, config().look_ahead) == (24, 8)
    assert config(upsample_rates=[4]).look_ahead == 4
    # One row in, none out: the first block waits for a second frame.
    assert config(upsampling_ratios=[]).samples(1) == 0


def test_keys_of_the_quantiser_change_nothing():
    inert = {"codebook_dim": 7, "semantic_codebook_size": 9, "layer_scale_initial_scale": 0.5, "model_type": ""}
    assert config(**inert) == config()


@pytest.mark.parametrize(
    ("changes", "error", "rule"),
    [
        ({"mystery": 1}, UnsupportedModel, "mystery"),
        ({"hidden_act": "gelu"}, UnsupportedModel, "hidden_act"),
        ({"sliding_window": None}, CorruptFile, "sliding_window is missing"),
        ({"sliding_window": 0}, CorruptFile, "sliding_window must be from 1"),
        ({"codebook_size": "32"}, CorruptFile, "codebook_size must be an integer"),
        ({"upsample_rates": []}, CorruptFile, "at least one rate"),
        ({"upsample_rates": [3, 0]}, CorruptFile, "upsample_rates must hold integers from 1"),
        ({"upsampling_ratios": [64, 64, 64]}, CorruptFile, "multiply to at most 65536"),
        ({"decoder_dim": 30}, CorruptFile, "multiple of 4"),
        ({"num_key_value_heads": 3}, CorruptFile, "not a multiple"),
    ],
)
def test_a_section_outside_its_rules_is_refused(changes, error, rule):
    with pytest.raises(error, match=rule):
        config(**changes)
