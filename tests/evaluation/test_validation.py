"""Whole validations of small models: they pass, and a fault is found, located and fails them."""

from __future__ import annotations

import json

import pytest
import torch

from lluda.engine.loading.load_options import LoadOptions
from lluda.engine.loading.model_files import ModelFiles
from lluda.errors import InvalidRequest, LimitExceeded, LludaError, OutOfMemory
from lluda.evaluation import ladder
from lluda.evaluation.inputs import ValidationInput, random_ids
from lluda.evaluation.ladder import validate
from lluda.evaluation.validation import ValidationRequest
from tests.evaluation.conftest import TINY, TINY_ALL_EXPERTS, run_validation, text_of

MODES = {"one prefill": 512, "token by token": 1, "chunks of 7": 7}


@pytest.mark.parametrize("raw", TINY.values(), ids=TINY)
@pytest.mark.parametrize("mode", MODES)
def test_float32_is_transformers_to_rounding(raw, mode, checkpoint):
    validation = run_validation(checkpoint(raw), "f32", rows_per_step=MODES[mode], greedy=24)
    assert validation.request.mode(validation.rows) == mode
    assert validation.passed, [threshold.describe() for threshold in validation.thresholds]
    text = text_of(validation)
    assert text.greedy.agreement == 1.0
    assert max(stage.relative_error for stage in text.stages) <= 1e-5
    assert validation.first_divergence is None


@pytest.mark.parametrize(
    "raw", [TINY["qwen3"], TINY["llama"], TINY_ALL_EXPERTS], ids=["qwen3", "llama", "mixed, all experts"]
)
@pytest.mark.parametrize("mode", MODES)
def test_bf16_is_nearer_to_float64_than_transformers(raw, mode, checkpoint):
    validation = run_validation(checkpoint(raw), "bf16", tokens=64, rows_per_step=MODES[mode], greedy=4)
    distance = text_of(validation).stages[-1].error_to_float64
    assert validation.passed, [threshold.describe() for threshold in validation.thresholds]
    assert 0 < distance.lluda < distance.reference
    assert validation.first_divergence is None


@pytest.mark.parametrize(("name", "stage"), [("1.mlp.down_proj", "layers.1"), ("2.self_attn.q_norm", "layers.2")])
def test_a_damaged_weight_is_located_and_fails_the_threshold(name, stage, checkpoint, damage):
    damage(f"model.layers.{name}.weight", lambda weight: weight.mul_(1.25))
    validation = run_validation(checkpoint(TINY["qwen3"]), "f32")
    text = text_of(validation)
    assert text.first_divergence.stage == stage
    assert validation.passed is False
    assert not validation.thresholds[0].passed
    assert all(row.max_abs_error == 0 for row in text.stages[: text.stages.index(text.first_divergence)])


def test_one_expert_of_one_layer_is_located(checkpoint, damage):
    damage("model.layers.1.mlp.experts.3.up_proj.weight", lambda weight: weight.neg_())
    validation = run_validation(checkpoint(TINY["moe"]), "f32", tokens=64)
    assert text_of(validation).first_divergence.stage == "layers.1"
    assert validation.passed is False


def test_a_damaged_embedding_is_located_at_the_token_s_position(checkpoint, damage):
    ids = random_ids(512, 40, 0)
    position = 17
    assert ids.index(ids[position]) == position
    damage("model.embed_tokens.weight", lambda weight: weight[ids[position]].neg_())
    validation = run_validation(checkpoint(TINY["qwen3"]), "f32")
    document = validation.document()
    assert document["first_divergence"] == {"component": "text", "stage": "embeddings", "position": position}


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_a_damaged_head_fails_only_the_logits_and_the_greedy_tokens(dtype, checkpoint, damage):
    damage("lm_head.weight", lambda weight: weight.copy_(weight.roll(1, 0)))
    validation = run_validation(checkpoint(TINY_ALL_EXPERTS), dtype)
    text = text_of(validation)
    assert text.first_divergence.stage == "logits"
    assert text.greedy.first_divergence == 0
    assert text.stages[-1].argmax_agreement < 0.1
    assert validation.passed is False


def test_bf16_that_loses_precision_fails_its_threshold(checkpoint, damage):
    """Rounding one matrix to 4 bits of significand is no fault a tolerance would see, but the distance does."""

    def round_coarsely(weight: torch.Tensor) -> None:
        weight.copy_((weight.view(torch.int16) & -16).view(torch.bfloat16))

    damage("model.layers.0.mlp.up_proj.weight", round_coarsely)
    validation = run_validation(checkpoint(TINY["qwen3"]), "bf16", tokens=64)
    assert validation.first_divergence is None
    assert text_of(validation).ratio > 1.0
    assert validation.passed is False


def test_the_document_has_what_design_promises_and_is_strict_json(checkpoint):
    document = run_validation(checkpoint(TINY["moe"]), "bf16", greedy=5).document()
    again = json.loads(json.dumps(document, allow_nan=False))
    assert again == document
    (text,) = document["components"]
    assert [stage["stage"] for stage in text["stages"]][::5] == ["embeddings", "logits"]
    figures = {"argmax_agreement", "max_abs_error", "error_to_float64", "first_divergence"}
    assert all(figures <= stage.keys() for stage in text["stages"])
    assert set(text["stages"][-1]["error_to_float64"]) == {"lluda", "reference", "ratio"}
    assert text["ends"] == ["logits"]
    assert text["ratio"] == text["stages"][-1]["error_to_float64"]["ratio"]
    assert text["greedy"]["tokens"] == 5
    assert {"lluda", "torch", "transformers", "python"} <= document["versions"].keys()
    assert document["model"]["model_type"] == "qwen3_moe"
    assert set(document["seconds"]) == {"text lluda", "text transformers", "text float64"}


def test_without_float64_a_bf16_run_is_not_judged(checkpoint):
    validation = run_validation(checkpoint(TINY["qwen3"]), "bf16", float64=False)
    assert validation.thresholds == ()
    assert validation.passed is None
    assert validation.document()["components"][0]["stages"][-1]["error_to_float64"] is None
    assert "text float64" not in validation.seconds


def test_nan_in_the_weights_is_an_error_with_its_place(checkpoint, damage):
    damage("model.layers.1.self_attn.o_proj.weight", lambda weight: weight[0, 0].fill_(float("nan")))
    with pytest.raises(LludaError, match=r"lluda has NaN or infinity in stage layers\.1 at position 0"):
        run_validation(checkpoint(TINY["qwen3"]), "f32")


@pytest.mark.parametrize(
    ("request_options", "message"),
    [
        ({"given": ValidationInput((), "")}, "nothing to run"),
        ({"reference": "onnx"}, "'onnx' is not one of transformers, llama.cpp"),
        ({"rows_per_step": 0}, "rows_per_step must be at least 1, not 0"),
        ({"greedy": -1}, "not -1"),
    ],
)
def test_requests_out_of_range_are_refused(request_options, message):
    with pytest.raises(InvalidRequest, match=message):
        ValidationRequest(**({"given": ValidationInput((1,), "")} | request_options))


def test_a_request_longer_than_the_context_is_refused_with_the_numbers(checkpoint):
    with pytest.raises(LimitExceeded, match="1020 tokens and 16 greedy ones exceed the context of 1024"):
        run_validation(checkpoint(TINY["qwen3"]), tokens=1020)


def test_an_id_outside_the_vocabulary_is_refused(checkpoint):
    files = ModelFiles.find(checkpoint(TINY["qwen3"]))
    with pytest.raises(InvalidRequest, match="512 is outside the vocabulary; ids go from 0 to 511"):
        validate(files, LoadOptions(), ValidationRequest(given=ValidationInput((0, 512), "")))


def test_a_reference_that_does_not_fit_is_refused_before_it_is_loaded(checkpoint, monkeypatch):
    memory = type("Memory", (), {"available": 1000})
    monkeypatch.setattr(ladder.psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr("lluda.engine.loading.memory_plan.MemoryPlan.require_fit", lambda _: None)
    with pytest.raises(OutOfMemory, match=r"transformers needs about .* GB .* but 0\.00 GB are available"):
        run_validation(checkpoint(TINY["qwen3"]))


def test_llama_cpp_takes_only_float32(checkpoint):
    with pytest.raises(InvalidRequest, match=r"against llama\.cpp lluda runs in f32, not 'bf16'"):
        run_validation(checkpoint(TINY["qwen3"]), "bf16", reference="llama.cpp")
