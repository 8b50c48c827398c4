"""Real weights: SmolLM2-135M-Instruct, whose .gguf both transformers and llama.cpp read."""

from __future__ import annotations

import pytest
import torch

import lluda
from lluda.engine.loading.load_options import LoadOptions
from lluda.engine.loading.model_files import ModelFiles
from lluda.engine.loading.tokenizer import load_tokenizer
from lluda.evaluation.inputs import SAMPLE_TEXT, ValidationInput
from lluda.evaluation.ladder import validate
from lluda.evaluation.transformers_loading import load_text_model
from lluda.evaluation.validation import ValidationRequest
from tests.evaluation.conftest import text_of

PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n",
    "Water boils at",
    "The three primary colours are",
    "Dear Sir or Madam,\n\nI am writing to",
    "1, 1, 2, 3, 5, 8,",
    "Q: Why is the sky blue?\nA:",
    "To make bread you need",
    "In 1969, the first",
    "The quick brown fox",
    "import numpy as np\n\n",
    "Photosynthesis is the process by which",
    "She opened the letter and",
    "¿Dónde está la biblioteca?",
    "Le chat est assis sur",
    "The square root of 144 is",
    "Roses are red,",
    "A haiku about rain:\n",
    "The largest planet in the solar system",
)
TOKENS = 48


def run(path, dtype: str, text: str, **request):
    files = ModelFiles.find(path)
    ids = tuple(load_tokenizer(path).encode(text, allow_special=False))
    return validate(files, LoadOptions(dtype=dtype), ValidationRequest(given=ValidationInput(ids, "a text"), **request))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_greedy_text_of_20_prompts_is_that_of_transformers_in_float32(smollm2):
    pytest.importorskip("transformers")
    model = lluda.load(smollm2, dtype="f32")
    ours = model.generate(list(PROMPTS), temperature=0.0, max_tokens=TOKENS)
    prompts = [model.tokenizer.encode(prompt, allow_special=False) for prompt in PROMPTS]
    tokenizer = model.tokenizer
    del model
    reference = load_text_model(smollm2, "f32")
    for prompt, ids, completion in zip(PROMPTS, prompts, ours, strict=True):
        output = reference.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=TOKENS, pad_token_id=0)
        theirs = output[0, len(ids) :].tolist()
        assert list(completion.token_ids) == theirs, prompt
        assert completion.text == tokenizer.decode(theirs), prompt


def test_float32_logits_of_real_text_are_those_of_transformers(smollm2):
    pytest.importorskip("transformers")
    validation = run(smollm2, "f32", SAMPLE_TEXT[:200], greedy=8, float64=False, rows_per_step=16)
    assert validation.passed, [threshold.describe() for threshold in validation.thresholds]
    assert validation.first_divergence is None
    assert max(stage.relative_error for stage in text_of(validation).stages) < 1e-4


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("rows", [512, 1], ids=["one prefill", "token by token"])
def test_float32_over_64_tokens(smollm2, rows):
    validation = run(smollm2, "f32", SAMPLE_TEXT[:300], greedy=64, rows_per_step=rows)
    assert validation.rows >= 60
    assert validation.passed, [threshold.describe() for threshold in validation.thresholds]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("rows", [512, 1], ids=["one prefill", "token by token"])
def test_bf16_is_no_further_from_float64_than_transformers(smollm2, rows):
    """Real text in three parts, in the place of three seeds."""
    third = len(SAMPLE_TEXT) // 3
    parts = [SAMPLE_TEXT[start : start + third] for start in (0, third, 2 * third)]
    runs = [text_of(run(smollm2, "bf16", part, greedy=0, rows_per_step=rows)) for part in parts]
    distances = [found.stages[-1].error_to_float64 for found in runs]
    assert sum(d.lluda for d in distances) <= sum(d.reference for d in distances)


def test_logits_of_real_text_are_llama_cpps(smollm2):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (requirements/peers.txt)")
    validation = run(smollm2, "f32", SAMPLE_TEXT, reference="llama.cpp", greedy=0)
    assert validation.passed, [threshold.describe() for threshold in validation.thresholds]
    (logits,) = text_of(validation).stages
    assert logits.argmax_agreement >= 0.9
    assert logits.error_to_float64 is None


def test_llama_cpp_notices_a_model_that_reads_the_text_one_token_late(smollm2, monkeypatch):
    """The thresholds for llama.cpp are wider than float32's; wrong positions must still fail them."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (requirements/peers.txt)")
    from lluda.backends.components import Rotary

    chosen = Rotary.chosen
    monkeypatch.setattr(Rotary, "chosen", lambda rotary, positions: chosen(rotary, positions * 2))
    validation = run(smollm2, "f32", SAMPLE_TEXT, reference="llama.cpp", greedy=0)
    assert validation.passed is False
