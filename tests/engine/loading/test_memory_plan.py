from __future__ import annotations

import pytest

from lluda.config.model import ModelConfig
from lluda.engine.kv_cache import CacheOptions
from lluda.engine.loading import memory_plan
from lluda.engine.loading.memory_plan import MemoryPlan, PlanRow, plan_memory, plan_speech
from lluda.errors import OutOfMemory
from lluda.models.causal_lm import causal_lm_parameters

# Spec section 1, "Qwen3 text models".
RELEASED = {
    "Qwen3-0.6B": (596_049_920, 114_688),
    "Qwen3-1.7B": (1_720_574_976, 114_688),
    "Qwen3-4B": (4_022_468_096, 147_456),
    "Qwen3-8B": (8_190_735_360, 147_456),
    "Qwen3-30B-A3B": (30_532_122_624, 98_304),
}


@pytest.mark.parametrize(("name", "expected"), RELEASED.items(), ids=RELEASED)
def test_parameters_and_kv_bytes_of_released_models_to_the_byte(released_config, name, expected):
    config = ModelConfig.from_hf(released_config(name)).text
    kv_bytes = CacheOptions(1).bytes_for(config, 1)
    plan = plan_memory(causal_lm_parameters(config), config, dtype="bf16", kv_bytes=kv_bytes, context=1, prefill_rows=1)
    assert (plan.parameters, plan.kv_cache.nbytes) == expected
    assert plan.weight_bytes == 2 * plan.parameters


def test_what_cannot_fit_is_refused_with_the_numbers():
    weights = (PlanRow("text / mlp", 5, 9_000_000_000, "cpu"),)
    rest = PlanRow("KV", 0, 500_000_000, "cpu"), PlanRow("activations", 0, 250_000_000, "cpu")
    plan = MemoryPlan("bf16", weights, *rest, available={"cpu": 8_000_000_000})
    assert not plan.fits
    with pytest.raises(OutOfMemory, match=r"needs 9\.75 GB on cpu.*8\.00 GB are available"):
        plan.require_fit()
    MemoryPlan("bf16", weights, *rest, available={"cpu": 9_750_000_000}).require_fit()


def test_a_device_whose_part_does_not_fit_is_named():
    weights = (PlanRow("thinker / mlp", 5, 4_000_000_000, "cpu"), PlanRow("talker / mlp", 5, 3_000_000_000, "cuda:0"))
    rest = PlanRow("KV", 0, 500_000_000, "cpu"), PlanRow("activations", 0, 250_000_000, "cpu")
    plan = MemoryPlan("bf16", weights, *rest, available={"cpu": 5_000_000_000, "cuda:0": 2_000_000_000})
    with pytest.raises(OutOfMemory, match=r"needs 3\.00 GB on cuda:0 \(weights 3\.00 GB\).*another --place"):
        plan.require_fit()


def omni_plan(card, machine, experts=0):
    sizes = {"thinker / mlp": 60 - experts, "thinker.visual / mlp": 2, "talker / mlp": 6, "code2wav / other": 1}
    sizes |= {"thinker / routed experts": experts - 1, "thinker / routers": 1} if experts else {}
    weights = tuple(PlanRow(name, 1, size * 10**9, "cuda") for name, size in sizes.items())
    rest = PlanRow("KV", 0, 10**9, "cuda"), PlanRow("activations", 0, 10**9, "cuda")
    return MemoryPlan("bf16", weights, *rest, available={"cuda": card * 10**9, "cpu": machine * 10**9})


@pytest.mark.parametrize(
    ("card", "machine", "message"),
    [
        (70, 16, r"1\.00 GB too few; --place code2wav=cpu fits; or take"),
        (68, 16, r"3\.00 GB too few; --place code2wav=cpu,vision_encoder=cpu fits"),
        (63, 16, r"8\.00 GB too few; --place code2wav=cpu,vision_encoder=cpu,talker=cpu fits"),
        (63, 8, r"8\.00 GB too few; take a smaller"),  # the CPU has no room for them
        (24, 99, r"47\.00 GB too few; take a smaller"),  # the thinker alone is too large
    ],
)
def test_a_card_that_is_too_small_is_told_what_fits(card, machine, message):
    with pytest.raises(OutOfMemory, match=message):
        omni_plan(card, machine).require_fit()
    omni_plan(71, 1).require_fit()


@pytest.mark.parametrize(
    ("card", "machine", "message"),
    [
        (70, 99, r"--place code2wav=cpu fits"),  # what costs least
        (24, 99, r"--place experts=cpu fits"),
        (13, 99, r"--place experts=cpu,code2wav=cpu fits"),
        (24, 49, r"47\.00 GB too few; take a smaller"),  # the CPU has no room for the experts
        (3, 99, r"68\.00 GB too few; take a smaller"),
    ],
)
def test_a_card_that_is_too_small_for_the_experts_is_told_to_place_them(card, machine, message):
    with pytest.raises(OutOfMemory, match=message):
        omni_plan(card, machine, experts=57).require_fit()


@pytest.mark.parametrize(("device", "tables"), [("cpu", []), ("cuda", [3 * 8 * 151_936])])
def test_what_a_gpu_looks_up_to_choose_tokens_is_counted(released_config, monkeypatch, device, tables):
    monkeypatch.setattr(memory_plan, "memory_available", lambda _: 10**12)
    config = ModelConfig.from_hf(released_config("Qwen3-0.6B")).text
    plan = plan_memory([], config, dtype="bf16", kv_bytes=7, context=1, prefill_rows=1, sequences=3, device=device)
    assert [row.nbytes for row in plan.sampling] == tables
    assert plan.total == 3 * 7 + plan.activations.nbytes + sum(tables)


@pytest.mark.parametrize(("sequences", "streams"), [(1, 17), (16, 17), (17, 34)])
def test_the_pasts_of_a_gpu_s_streams_are_counted(released_config, sequences, streams):
    config = ModelConfig.from_hf(released_config("Qwen3-Omni-30B-A3B-Instruct")).omni.speech
    rows = {row.component: row.nbytes for row in plan_speech(config, sequences, 64, 2, lambda _: "cuda")}
    assert rows[f"code2wav's pasts, {streams} streams"] == streams * 2 * 8 * 16 * 72 * 64 * 2
    assert "pasts" not in "".join(row.component for row in plan_speech(config, sequences, 64, 2, lambda _: "cpu"))
