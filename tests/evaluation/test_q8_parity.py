"""Q8_0 files beside llama.cpp.

llama.cpp rounds to Q8_0 also the rows that it multiplies with Q8_0 weights, and one rounding that falls the other way
moves all that follows: runs of such a network in float32 and float64 are as far apart as both are from the network
without it. So three things are asked: that one product is llama.cpp's to float32's last digits; that lluda's network
of a Q8_0 file is llama.cpp's network of its values; and that lluda is no further from llama.cpp's run of the file than
llama.cpp's own run of the values is.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lluda.config.model import ModelConfig
from lluda.convert.quantize import TypeChoice
from lluda.convert.quantize_model import quantize_model
from lluda.convert.synth import synthesize
from lluda.engine.loading.load_options import LoadOptions
from lluda.engine.loading.model_files import ModelFiles
from lluda.evaluation.inputs import random_ids
from lluda.evaluation.lluda_components import load_decoder
from lluda.models.build import all_parameters
from lluda.weights.gguf.checkpoint import GGUFCheckpoint
from tests.conftest import TINY_MOE, TINY_QWEN3
from tests.convert.test_quantize import checkpoint

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (requirements/peers.txt)")
MOE = TINY_MOE | {"moe_intermediate_size": 64}


def lluda_logits(path: Path, ids: tuple[int, ...], **options: str) -> torch.Tensor:
    return load_decoder(ModelFiles.find(path), LoadOptions(**options))[0].start()(ids).double()


def llama_logits(path: Path, ids: tuple[int, ...]) -> torch.Tensor:
    from lluda.evaluation.llama_cpp_reference import LlamaCppReference

    return LlamaCppReference(path, len(ids)).start()(ids).double()


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().mean() / other.abs().mean())


@pytest.mark.parametrize("raw", [TINY_QWEN3 | {"tie_word_embeddings": False}, MOE], ids=["dense", "moe"])
def test_a_product_with_rounded_rows_is_llama_cpps(tmp_path: Path, raw: dict[str, Any]) -> None:
    """The last product alone, behind which nothing can magnify a difference."""
    source, ids = checkpoint(tmp_path / "m", raw, dtype="F32"), random_ids(512, 20, 0)
    quantize_model(source, tmp_path / "q.gguf", TypeChoice("exact", {"text/lm_head": "q8_0"}))
    theirs = llama_logits(tmp_path / "q.gguf", ids)
    rounded = lluda_logits(tmp_path / "q.gguf", ids, dtype="f32", activations="q8_0")
    rows = [distance(*pair) for pair in zip(rounded, theirs, strict=True)]
    assert sorted(rows)[len(rows) * 3 // 4] < 1e-6, "in a row or two a value may lie on the edge of two roundings"
    assert distance(lluda_logits(tmp_path / "q.gguf", ids, dtype="f32"), theirs) > 1e-3


@pytest.mark.parametrize("raw", [TINY_QWEN3, MOE], ids=["dense", "moe"])
def test_llama_cpps_own_quantised_file_holds_the_same_bytes_and_runs(tmp_path: Path, raw: dict[str, Any]) -> None:
    import llama_cpp

    source, ids = checkpoint(tmp_path / "m", raw), random_ids(512, 20, 0)
    quantize_model(source, tmp_path / "bf16.gguf", TypeChoice("bf16"))
    quantize_model(source, tmp_path / "ours.gguf", TypeChoice("q8_0"))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, 1
    names = (str(tmp_path / name).encode() for name in ("bf16.gguf", "theirs.gguf"))
    assert llama_cpp.llama_model_quantize(*names, ctypes.byref(params)) == 0
    with GGUFCheckpoint(tmp_path / "ours.gguf") as ours, GGUFCheckpoint(tmp_path / "theirs.gguf") as theirs:
        assert ours.entries.keys() == theirs.entries.keys()
        for name, entry in ours.entries.items():
            assert theirs.entries[name].dtype == entry.dtype, name
            assert torch.equal(ours.stored(name).data, theirs.stored(name).data), name
    assert torch.equal(*(lluda_logits(tmp_path / f"{name}.gguf", ids, dtype="bf16") for name in ("ours", "theirs")))


def check(source: Path, folder: Path, ids: tuple[int, ...]) -> dict[str, float]:
    quantize_model(source, folder / "bf16.gguf", TypeChoice("exact"))
    bf16 = llama_logits(folder / "bf16.gguf", ids)
    plain = lluda_logits(folder / "bf16.gguf", ids, dtype="f32")
    (folder / "bf16.gguf").unlink()
    quantize_model(source, folder / "q.gguf", TypeChoice("q8_0"))
    quantize_model(folder / "q.gguf", folder / "f32.gguf", TypeChoice("exact"))
    values, blocks = llama_logits(folder / "f32.gguf", ids), llama_logits(folder / "q.gguf", ids)
    exact, bf16_run = (lluda_logits(folder / "q.gguf", ids, dtype=dtype) for dtype in ("f32", "bf16"))
    return {
        "llama.cpp's BF16 rounding": distance(bf16, plain),
        "lluda, float32": distance(exact, values),
        "lluda, BF16": distance(bf16_run, values),
        "llama.cpp's Q8_0 rounding": distance(blocks, values),
        "lluda's file, llama.cpp's rounding": distance(blocks, bf16_run),
    }


def judge(found: dict[str, float]) -> None:
    """What llama.cpp's own BF16 run differs from float32 is the bar for one set of values; what its rounding of rows to
    Q8_0 does is the bar for its run of the blocks."""
    print(found)
    assert found["lluda, float32"] < 0.1 * found["llama.cpp's BF16 rounding"]
    assert found["lluda, BF16"] < 2.5 * found["llama.cpp's BF16 rounding"]
    assert found["lluda's file, llama.cpp's rounding"] < 1.3 * found["llama.cpp's Q8_0 rounding"]


@pytest.mark.parametrize("raw", [TINY_QWEN3, MOE | {"num_experts_per_tok": 8}], ids=["dense", "moe"])
def test_small_models(tmp_path: Path, raw: dict[str, Any]) -> None:
    judge(check(checkpoint(tmp_path / "m", raw), tmp_path, random_ids(512, 40, 0)))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("name", "changes"),
    [("Qwen3-0.6B", {}), ("Qwen3-30B-A3B", {"num_hidden_layers": 3, "vocab_size": 20_000, "num_experts": 32})],
    ids=["0.6B", "reduced 30B-A3B"],
)
def test_released_shapes(
    tmp_path: Path, released_config: Callable[[str], dict[str, Any]], name: str, changes: dict[str, Any]
) -> None:
    raw = released_config(name) | changes
    config = ModelConfig.from_hf(raw)
    synthesize(all_parameters(config), tmp_path / "m", config=raw)
    judge(check(tmp_path / "m", tmp_path, random_ids(config.text.vocab_size, 48, 0)))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_perplexity_of_real_weights_on_real_text(smollm2: Path, tmp_path: Path) -> None:
    """SmolLM2 in Q8_0, on the part of Python's own reference that its standard library carries."""
    from pydoc_data.topics import topics

    from lluda.engine.loading.tokenizer import load_tokenizer
    from lluda.evaluation.llama_cpp_reference import LlamaCppReference
    from lluda.evaluation.perplexity import compare_predictions, text_chunks

    quantize_model(smollm2, tmp_path / "q.gguf", TypeChoice("q8_0"))
    text = "\n\n".join(topics[name] for name in sorted(topics))[:110_000]
    ids = load_tokenizer(tmp_path / "q.gguf").encode(text, allow_special=False)
    assert len(ids) >= 20_000
    options = LoadOptions(activations="q8_0", max_context=512, threads=1)
    ours, _ = load_decoder(ModelFiles.find(tmp_path / "q.gguf"), options)
    theirs = LlamaCppReference(tmp_path / "q.gguf", 512, threads=1)
    found = compare_predictions(ours, text_chunks(ids, 512, None), theirs).document()
    print(found)
    assert abs(found["ratio"] - 1) < 0.002
