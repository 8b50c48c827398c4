"""Predicted speeds: what they follow from, and where they are shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import pytest

from lluda.backends import select_backend
from lluda.bench.formats import FORMATS, load_options
from lluda.bench.prediction.prediction import Prediction
from lluda.bench.prediction.products import BF16_TEST, FLOPS_TEST, READ_TEST, Products, measure_products
from lluda.bench.process.job import Plan
from lluda.bench.runner import Settings, run_bench
from lluda.bench.table import render
from lluda.config.model import ModelConfig
from tests.conftest import TINY_QWEN3

FAST = Products(read=100e9, flops=1e13, bf16_flops=1e13)


def predicted(raw: dict[str, Any], products: Products = FAST, nbytes: float = 2.0) -> dict[str, float]:
    prediction = Prediction(ModelConfig.from_hf(raw), products, nbytes, "cpu")
    return {row.test: row.value for row in prediction.rows((128,), 128)}


def test_decoding_follows_the_bandwidth_and_a_prompt_the_arithmetic(
    released_config: Callable[[str], dict[str, Any]],
) -> None:
    raw = released_config("Qwen3-8B")
    base = predicted(raw)
    assert predicted(raw, replace(FAST, read=50e9))["tg128"] == pytest.approx(base["tg128"] / 2, rel=0.02)
    assert predicted(raw, replace(FAST, flops=0.5e13))["tg128"] == pytest.approx(base["tg128"])
    config = ModelConfig.from_hf(raw)
    prompt, slower = (
        Prediction(config, replace(FAST, flops=f), 2.0, "cpu").prefill(config.text, 2048) for f in (1e12, 5e11)
    )
    assert slower == pytest.approx(2 * prompt, rel=0.15)


def test_a_smaller_format_decodes_faster_and_an_expert_that_is_not_chosen_costs_nothing(
    released_config: Callable[[str], dict[str, Any]],
) -> None:
    sparse = released_config("Qwen3-30B-A3B")
    assert predicted(sparse)["tg128"] < predicted(sparse, nbytes=1.5)["tg128"] < predicted(sparse, nbytes=1.06)["tg128"]
    assert predicted(sparse)["tg128"] > 2 * predicted(released_config("Qwen3-8B"))["tg128"], "3 of 30 billion are read"


def test_what_speaks_is_predicted_of_an_omni_model_alone(released_config: Callable[[str], dict[str, Any]]) -> None:
    omni = predicted(released_config("Qwen3-Omni-30B-A3B-Instruct"))
    assert set(omni) - set(predicted(released_config("Qwen3-0.6B"))) == {
        *("code_predictor", "talker", "speech_frame", "code2wav1", "first_audio", "rtf")
    }
    assert omni["speech_frame"] == pytest.approx(omni["talker"] + omni["code_predictor"])
    assert omni["rtf"] == pytest.approx((omni["speech_frame"] + omni["code2wav1"]) / 80)


def test_convolutions_are_bf16_in_every_format(released_config: Callable[[str], dict[str, Any]]) -> None:
    raw = released_config("Qwen3-Omni-30B-A3B-Instruct")
    slow = predicted(raw, replace(FAST, flops=1e11))
    assert slow["code2wav1"] == predicted(raw)["code2wav1"]
    assert predicted(raw, replace(FAST, bf16_flops=1e11))["code2wav1"] > 10 * slow["code2wav1"]


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of small matrices, few times."""
    for name, value in {"OUT": 256, "IN": 128, "_TOTAL_BYTES": 1 << 18, "_PASSES": 2}.items():
        monkeypatch.setattr(f"lluda.bench.prediction.products.{name}", value)


@pytest.mark.parametrize("name", FORMATS)
def test_products_are_measured_in_every_format(little: None, name: str) -> None:
    options = {"dtype": "bf16", "weights": "auto", "activations": "exact"} | dict(load_options(name))
    backend = select_backend("auto", "cpu", options["dtype"], options["weights"], options["activations"])
    measured = measure_products(backend, name)
    assert not backend.decoded
    assert 1e6 < measured.read < 1e13
    assert 1e6 < measured.flops < 1e16
    assert 1e6 < measured.bf16_flops < 1e16
    again = Products.of_samples({sample.test: sample.value for sample in measured.samples()})
    assert again is not None
    assert astuple(again) == pytest.approx(astuple(measured))


def test_no_products_no_prediction() -> None:
    assert Products.of_samples({"tg128": 1.0, READ_TEST: 2.0}) is None
    assert Products.of_samples({READ_TEST: 1.0, FLOPS_TEST: 2.0, BF16_TEST: 3.0}) == Products(1e9, 2e9, 3e9)


def test_the_bench_shows_what_it_expected(little: None, in_this_process: None, checkpoint: Callable[..., Path]) -> None:
    plan = Plan(tests=("pp", "tg", "products"), prompts=(8,), generate=4)
    report = run_bench(str(checkpoint(TINY_QWEN3)), Settings(plan=plan, repeat=1))
    expected = {row.test: row.predicted for row in report.rows}
    assert {test for test, value in expected.items() if value} == {"pp8", "tg4"}
    assert expected["tg4_sampled"] is None
    assert "predicted" in [str(column.header) for column in render(report).renderables[0].columns]  # type: ignore[attr-defined]
    without = run_bench(str(checkpoint(TINY_QWEN3)), Settings(plan=Plan(tests=("tg",), generate=4), repeat=1))
    assert all(row.predicted is None for row in without.rows)
    assert "predicted" not in [str(column.header) for column in render(without).renderables[0].columns]  # type: ignore[attr-defined]


def test_the_first_sound_is_predicted_where_it_is_known(released_config: Callable[[str], dict[str, Any]]) -> None:
    config = ModelConfig.from_hf(released_config("Qwen3-Omni-30B-A3B-Instruct"))
    tests = {
        name: {row.test for row in Prediction(config, FAST, 2.0, name).rows((128,), 128)} for name in ("cpu", "cuda")
    }
    assert tests["cpu"] - tests["cuda"] == {"first_audio"}
