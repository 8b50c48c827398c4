from __future__ import annotations

import pytest
import torch

from lluda.backends.batch import Segment
from lluda.config.model import ModelConfig
from lluda.errors import LimitExceeded
from lluda.models.causal_lm import causal_lm_parameters
from tests.conftest import TINY_LLAMA, TINY_MIXED, TINY_MOE, TINY_QWEN3, TinyModel, placed

ALL = {"qwen3": TINY_QWEN3, "moe": TINY_MOE, "mixed": TINY_MIXED, "llama": TINY_LLAMA}
BIASED = TINY_QWEN3 | {"attention_bias": True}
WINDOWED = TINY_QWEN3 | {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}


def prompt(length: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 512, (length,), generator=torch.Generator().manual_seed(seed))


def transformers_model(raw, tensors):
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(**raw)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    if not raw.get("use_qk_norm", True):
        for layer in model.model.layers:
            layer.self_attn.q_norm = layer.self_attn.k_norm = torch.nn.Identity()
    state = {name: tensor.clone() for name, tensor in tensors.items()}
    for layer in range(raw["num_hidden_layers"]):
        prefix = f"model.layers.{layer}.mlp."
        names = [f"{prefix}experts.{expert}." for expert in range(raw.get("num_experts", 0))]
        if names and f"{names[0]}gate_proj.weight" in state:
            parts = {p: [state.pop(f"{n}{p}.weight") for n in names] for p in ("gate_proj", "up_proj", "down_proj")}
            fused = [torch.cat(pair) for pair in zip(parts["gate_proj"], parts["up_proj"], strict=True)]
            state[f"{prefix}experts.gate_up_proj"] = torch.stack(fused)
            state[f"{prefix}experts.down_proj"] = torch.stack(parts["down_proj"])
    if raw["tie_word_embeddings"]:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("raw", [*ALL.values(), BIASED, WINDOWED], ids=[*ALL, "biased", "windowed"])
def test_float32_logits_equal_transformers(raw):
    tiny = TinyModel(raw)
    ids = prompt(50)
    with torch.inference_mode():
        expected = transformers_model(raw, tiny.tensors)(ids[None]).logits[0]
    found = tiny.logits(ids)
    assert (found - expected).abs().max() <= 1e-5 * (expected.max() - expected.min())


@pytest.mark.parametrize("raw", [*ALL.values(), WINDOWED], ids=[*ALL, "windowed"])
@pytest.mark.parametrize("chunk", [1, 7, 16])
def test_chunked_prefill_and_single_steps_equal_one_prefill(raw, chunk):
    tiny = TinyModel(raw, "f64")
    ids = prompt(40)
    torch.testing.assert_close(tiny.logits(ids, chunk), tiny.logits(ids), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("raw", ALL.values(), ids=ALL)
def test_a_batch_of_different_lengths_equals_single_runs(raw):
    tiny = TinyModel(raw, "f64")
    prompts = [prompt(n, seed=n) for n in (1, 5, 23)]
    caches = [tiny.cache() for _ in prompts]
    single = [tiny.logits(ids) for ids in prompts]
    ids = torch.cat(prompts)
    positions = torch.cat([torch.arange(len(p)) for p in prompts])
    starts = [0, 1, 6]
    segments = [Segment(s, len(p), c) for s, p, c in zip(starts, prompts, caches, strict=True)]
    with torch.inference_mode():
        together = tiny.network(ids, positions, segments, None)
    torch.testing.assert_close(together, torch.cat(single), rtol=1e-10, atol=1e-10)


def test_only_the_chosen_rows_get_logits():
    tiny = TinyModel(TINY_QWEN3)
    ids = prompt(9)
    with torch.inference_mode():
        last = tiny.network(ids, torch.arange(9), [Segment(0, 9, tiny.cache())], torch.tensor([8]))
    torch.testing.assert_close(last[0], tiny.logits(ids)[8])


def test_an_expert_no_token_chose_is_never_run():
    tiny = TinyModel(TINY_MOE, "f64")
    ids = prompt(1)
    expected = tiny.logits(ids)
    mixture = tiny.network.decoder.layers.blocks[0][1]
    ran = []
    original = tiny.backend.swiglu
    tiny.backend.swiglu = lambda x, mlp: (ran.append(mlp), original(x, mlp))[1]
    assert torch.equal(tiny.logits(ids), expected)
    in_first_layer = [mlp for mlp in ran if any(mlp is expert for expert in mixture.experts)]
    assert len(in_first_layer) == TINY_MOE["num_experts_per_tok"]


def test_bf16_is_near_float64_and_keeps_its_residual_in_float32():
    ids = prompt(30)
    observed = {}
    near = TinyModel(TINY_QWEN3, "bf16")
    with torch.inference_mode():
        logits = near.network(ids, torch.arange(30), [Segment(0, 30, near.cache())], None, observed.__setitem__)
    truth = TinyModel(TINY_QWEN3, "f64")
    exact = {name: tensor.double() for name, tensor in near.tensors.items()}
    truth.network = type(truth.network)(truth.config, placed(exact, TINY_QWEN3, truth.backend), truth.backend)
    error = (logits.double() - truth.logits(ids)).abs().mean()
    assert observed["layers.2"].dtype == torch.float32
    assert 0 < error < 0.02 * truth.logits(ids).abs().mean()


@pytest.mark.parametrize("kv_dtype", ["bf16", "f32"])
@pytest.mark.parametrize("strategy", ["growing", "preallocated"])
def test_cache_strategies_agree(strategy, kv_dtype):
    tiny = TinyModel(TINY_QWEN3)
    ids = prompt(600)
    found = tiny.logits(ids, 50, tiny.cache(strategy=strategy, dtype=kv_dtype))
    expected = tiny.logits(ids)
    tolerance = 1e-5 if kv_dtype == "f32" else 2e-2
    assert (found - expected).abs().max() <= tolerance * (expected.max() - expected.min())


def test_long_context_32k_positions():
    raw = TINY_QWEN3 | {"num_hidden_layers": 1, "max_position_embeddings": 40960}
    tiny = TinyModel(raw, max_length=32768)
    ids = prompt(32768)
    cache = tiny.cache()
    chunked = tiny.logits(ids[:-2], 2048, cache)
    stepped = tiny.logits(ids[-2:], 1, cache)
    assert torch.isfinite(chunked).all()
    with torch.inference_mode():
        expected = transformers_model(raw, tiny.tensors)(ids[None], logits_to_keep=2).logits[0]
    assert (stepped - expected).abs().max() <= 1e-4 * (expected.max() - expected.min())


def test_a_full_cache_refuses_with_both_numbers():
    tiny = TinyModel(TINY_QWEN3, max_length=8)
    with pytest.raises(LimitExceeded, match=r"8 positions but 9"):
        tiny.logits(prompt(9))


def test_names_and_shapes_are_those_of_the_released_30b(released_config):
    specs = causal_lm_parameters(ModelConfig.from_hf(released_config("Qwen3-30B-A3B")).text)
    assert sum(spec.elements for spec in specs) == 30_532_122_624
    assert len(specs) == 18_867


def test_tied_parameters_count_once_and_all_tensors_are_311(released_config):
    specs = causal_lm_parameters(ModelConfig.from_hf(released_config("Qwen3-0.6B")).text)
    assert len(specs) == 311
    assert sum(spec.elements for spec in specs) == 751_632_384
    assert sum(spec.elements for spec in specs if not spec.tied_to) == 596_049_920
