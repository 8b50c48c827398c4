from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lluda.bench.prediction.weight_traffic import bytes_per_step, code_predictor_bytes, talker_bytes, weights_per_step
from lluda.config.model import ModelConfig
from lluda.models.build import speech_parameters
from lluda.models.causal_lm import causal_lm_parameters
from tests.conftest import TINY_MIXED, TINY_MOE, TINY_QWEN3


def stored(raw: dict[str, Any]) -> int:
    return sum(spec.elements for spec in causal_lm_parameters(ModelConfig.from_hf(raw).text) if spec.tied_to is None)


def test_a_tied_dense_model_reads_all_it_stores_and_one_embedding_row() -> None:
    assert weights_per_step(ModelConfig.from_hf(TINY_QWEN3).text) == stored(TINY_QWEN3) + 64


def test_an_untied_model_does_not_read_its_embedding() -> None:
    raw = TINY_QWEN3 | {"tie_word_embeddings": False}
    assert weights_per_step(ModelConfig.from_hf(raw).text) == stored(raw) - 512 * 64 + 64


def test_only_chosen_experts_are_read() -> None:
    for raw, sparse_layers in ((TINY_MOE, 3), (TINY_MIXED, 2)):
        not_chosen = sparse_layers * (8 - 2) * 3 * 48 * 64
        expected = stored(raw) - 512 * 64 + 64 - not_chosen
        assert abs(weights_per_step(ModelConfig.from_hf(raw).text) - expected) < 1e-6


def test_bytes_follow_the_size_that_each_tensor_has() -> None:
    config = ModelConfig.from_hf(TINY_MOE).text
    specs = causal_lm_parameters(config)
    in_bf16 = {spec.name: 2 * spec.elements for spec in specs}
    assert abs(bytes_per_step(config, in_bf16) - 2 * weights_per_step(config)) < 1e-6
    with_larger_expert = in_bf16 | {"model.layers.0.mlp.experts.3.up_proj.weight": 2 * 48 * 64 + 800}
    assert abs(bytes_per_step(config, with_larger_expert) - 2 * weights_per_step(config) - 800 * 2 / 8) < 1e-6


def test_a_tied_head_reads_the_embedding() -> None:
    config = ModelConfig.from_hf(TINY_QWEN3).text
    sizes = {spec.name: spec.elements for spec in causal_lm_parameters(config) if spec.tied_to is None}
    assert abs(bytes_per_step(config, sizes) - weights_per_step(config)) < 1e-6


def test_released_sizes(released_config: Callable[[str], dict[str, Any]]) -> None:
    dense = weights_per_step(ModelConfig.from_hf(released_config("Qwen3-0.6B")).text)
    assert 0.59e9 < dense < 0.6e9
    sparse = weights_per_step(ModelConfig.from_hf(released_config("Qwen3-30B-A3B")).text)
    assert 2.8e9 < sparse < 3.4e9, "the A3B of its name, less the embedding"


def test_a_frame_reads_the_predictors_layers_in_each_pass_and_the_talkers_chosen_experts_once(
    released_config: Callable[[str], dict[str, Any]],
) -> None:
    omni = ModelConfig.from_hf(released_config("Qwen3-Omni-30B-A3B-Instruct")).omni
    assert omni is not None and omni.speech is not None
    config = omni.speech.talker
    sizes = {spec.name: 2 * spec.elements for spec in speech_parameters(omni.speech)}
    # Five layers of q, k, v, o and an MLP fifteen times, fifteen heads once; BF16.
    layer = 1024 * (16 + 8 + 8 + 16) * 128 + 3 * 1024 * 3072
    expected = 2 * (15 * 5 * layer + 15 * 2048 * 1024)
    assert abs(code_predictor_bytes(config, sizes) / expected - 1) < 1e-3
    # Twenty layers of q, k, v, o, router, 6 experts and the shared one, and the head.
    layer = 1024 * (16 + 2 + 2 + 16) * 128 + 128 * 1024 + 3 * 1024 * (6 * 384 + 768)
    expected = 2 * (20 * layer + 3072 * 1024)
    assert abs(talker_bytes(config, sizes) / expected - 1) < 1e-3
