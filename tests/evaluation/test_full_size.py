"""The thresholds of a text model at the widths of released models, on seeded random weights. Minutes and gigabytes.

* Qwen3-0.6B: whole.
* Qwen3-30B-A3B: two of its 48 layers with all 128 experts, and a vocabulary of 32,768.
* The first plan's figures (hidden 4096, dense and sparse layers in turn, 64 experts top-4, no qk-norm): two layers and
  a vocabulary of 32,768. In float32 with 16 of the 64 experts: all would need 20 GB.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lluda.convert.synth import override_config
from lluda.evaluation.validation import Validation
from tests.evaluation.conftest import run_validation, text_of, write_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

SEEDS = (0, 1, 2)
TOKENS = 64

MIXED: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": 4096,
    "num_hidden_layers": 2,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 11008,
    "moe_intermediate_size": 2816,
    "num_experts": 64,
    "num_experts_per_tok": 4,
    "norm_topk_prob": True,
    "decoder_sparse_step": 2,
    "mlp_only_layers": [],
    "use_qk_norm": False,
    "vocab_size": 32768,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "hidden_act": "silu",
}
REDUCED = {
    "Qwen3-0.6B": (),
    "Qwen3-30B-A3B": ("num_hidden_layers=2", "vocab_size=32768", "eos_token_id=0", "bos_token_id=0"),
}


@pytest.fixture(params=[*REDUCED, "mixed"])
def model(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """A name and a config."""
    if request.param == "mixed":
        return request.param, MIXED
    raw = request.getfixturevalue("released_config")(request.param)
    return request.param, override_config(raw, REDUCED[request.param])


@pytest.fixture
def checkpoint_of(tmp_path: Path) -> Callable[[dict[str, Any], int], Any]:
    """A checkpoint that is removed after its use: three of them need not stand on the disk at once."""
    pytest.importorskip("transformers")

    @contextmanager
    def made(raw: dict[str, Any], seed: int) -> Iterator[Path]:
        folder = write_checkpoint(tmp_path / f"seed{seed}", raw, seed)
        try:
            yield folder
        finally:
            shutil.rmtree(folder)

    return made


def test_float32_logits_and_64_greedy_tokens(model, checkpoint_of):
    name, raw = model
    raw = raw | {"num_experts": 16} if name == "mixed" else raw
    with checkpoint_of(raw, 0) as path:
        validation = run_validation(path, "f32", tokens=TOKENS, greedy=64, float64=False)
    assert validation.passed, [threshold.describe() for threshold in validation.thresholds]
    text = text_of(validation)
    assert text.stages[-1].relative_error <= 1e-3
    assert text.greedy.tokens == 64
    assert text.greedy.agreement == 1.0


def test_float32_token_by_token_through_the_cache(released_config, checkpoint_of):
    with checkpoint_of(released_config("Qwen3-0.6B"), 0) as path:
        validation = run_validation(path, "f32", tokens=TOKENS, greedy=0, float64=False, rows_per_step=1)
    assert validation.passed, [threshold.describe() for threshold in validation.thresholds]


def test_bf16_is_no_further_from_float64_than_transformers(model, checkpoint_of):
    """Mean over positions and three seeds, each with weights and ids of its own."""
    _, raw = model
    ours = theirs = 0.0
    for seed in SEEDS:
        with checkpoint_of(raw, seed) as path:
            validation: Validation = run_validation(path, "bf16", tokens=TOKENS, seed=seed, greedy=0)
        distance = text_of(validation).stages[-1].error_to_float64
        ours, theirs = ours + distance.lluda, theirs + distance.reference
        print(f"{model[0]}, seed {seed}: {distance.lluda:.5f} / {distance.reference:.5f} = {distance.ratio:.3f}")
    assert theirs > 0
    assert ours / theirs <= 1.0
