"""Operations counted from a config, against those that torch counts while the reference backend runs."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lluda.bench.prediction.arithmetic import (
    DecoderWeights,
    attention_flops,
    cache_bytes,
    chosen_share,
    read_share,
    vocoder_flops,
    vocoder_weights,
)
from lluda.config.code2wav import read_code2wav
from lluda.config.model import ModelConfig
from lluda.config.reader import ConfigReader
from lluda.models.code2wav import code2wav_parameters
from tests.config.test_code2wav import SMALL
from tests.conftest import TINY_MIXED, TINY_MOE, TINY_QWEN3, TinyModel
from tests.models.test_code2wav import codes_of, network, speech_like


@pytest.mark.parametrize("raw", [TINY_QWEN3, TINY_MOE, TINY_MIXED], ids=["dense", "mixture", "mixed"])
def test_a_prompts_operations_are_those_torch_counts(raw: dict) -> None:  # type: ignore[type-arg]
    tiny, rows = TinyModel(raw), 24
    with FlopCounterMode(display=False) as counter:
        tiny.logits(torch.arange(rows))
    weights, config = DecoderWeights.of(tiny.config), tiny.config
    products = 2 * rows * (weights.dense + chosen_share(config) * weights.experts + weights.head)
    counted = counter.get_total_flops()
    # The reference multiplies whole squares of scores, or leaves attention to an operation that torch does not count.
    whole = attention_flops(config, rows, 0) * 2 * rows / (rows + 1)
    assert products * 0.99 <= counted <= (products + whole) * 1.01


def test_a_frames_operations_are_those_torch_counts() -> None:
    config = read_code2wav(ConfigReader(SMALL, "config.json: code2wav_config"))
    model, frames = network(config, speech_like(config)), 64
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(codes_of(config, frames))
    assert counter.get_total_flops() / frames == pytest.approx(vocoder_flops(config), rel=0.1)


def test_weights_are_those_of_the_tensors() -> None:
    config = ModelConfig.from_hf(TINY_MOE).text
    weights = DecoderWeights.of(config)
    assert weights.experts == 3 * 8 * 3 * 48 * 64
    assert weights.head == 512 * 64
    vocoder = read_code2wav(ConfigReader(SMALL, "config.json: code2wav_config"))
    assert vocoder_weights(vocoder) < sum(spec.elements for spec in code2wav_parameters(vocoder))


def test_more_rows_read_more_experts_and_never_all_of_them_twice() -> None:
    config = ModelConfig.from_hf(TINY_MOE).text
    assert read_share(config, 1) == pytest.approx(chosen_share(config)) == pytest.approx(2 / 8)
    assert read_share(config, 1) < read_share(config, 4) < read_share(config, 64) < 1
    assert read_share(ModelConfig.from_hf(TINY_QWEN3).text, 4) == 0


def test_a_position_reads_its_keys_and_values() -> None:
    config = ModelConfig.from_hf(TINY_QWEN3).text
    one = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 2
    assert cache_bytes(config, 10) == 10 * one
