"""The copy that llama.cpp gets holds the same bits, and llama.cpp computes the same tokens from it as lluda."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from lluda.bench.process.gguf_copy import gguf_copy
from lluda.bench.process.job import Job
from lluda.config.model import ModelConfig
from lluda.errors import UnsupportedModel
from lluda.weights.checkpoint import open_checkpoint, read_config
from tests.conftest import TINY_LLAMA, TINY_MIXED, TINY_MOE, TINY_QWEN3

Make = Callable[..., Path]


def config_of(folder: Path) -> ModelConfig:
    return ModelConfig.from_hf(read_config(folder))


@pytest.mark.parametrize("raw", [TINY_QWEN3, TINY_MOE], ids=["dense", "moe"])
def test_every_tensor_reads_back_the_same_bits(raw: dict[str, Any], checkpoint: Make, tmp_path: Path) -> None:
    folder = checkpoint(raw)
    original = open_checkpoint(folder)
    copy = open_checkpoint(gguf_copy(folder, config_of(folder), tmp_path))
    assert set(copy.entries) == set(original.entries)
    for name, entry in original.entries.items():
        ours, theirs = original.tensor(name), copy.tensor(name)
        widened = len(entry.shape) == 1 or name.endswith("mlp.gate.weight")
        assert theirs.dtype == (torch.float32 if widened else torch.bfloat16), name
        assert torch.equal(ours.float(), theirs.float()), name


def test_the_gguf_package_reads_the_copy(checkpoint: Make, tmp_path: Path) -> None:
    folder = checkpoint(TINY_MOE)
    reader = gguf.GGUFReader(gguf_copy(folder, config_of(folder), tmp_path))
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    experts = tensors["blk.1.ffn_up_exps.weight"]
    assert experts.shape.tolist() == [64, 48, 8]
    fifth = open_checkpoint(folder).tensor("model.layers.1.mlp.experts.5.up_proj.weight").view(torch.uint16).numpy()
    assert np.array_equal(np.asarray(experts.data).reshape(-1).view(np.uint16).reshape(8, 48, 64)[5], fifth)
    assert reader.fields["qwen3moe.expert_used_count"].contents() == 2


def test_a_copy_is_made_once_and_again_when_the_weights_change(checkpoint: Make, tmp_path: Path) -> None:
    folder = checkpoint(TINY_QWEN3)
    calls: list[int] = []
    first = gguf_copy(folder, config_of(folder), tmp_path, lambda done, _total: calls.append(done))
    assert calls == sorted(calls)
    assert calls
    calls.clear()
    assert gguf_copy(folder, config_of(folder), tmp_path, lambda done, _total: calls.append(done)) == first
    assert not calls
    (folder / "model.safetensors").touch()
    assert gguf_copy(folder, config_of(folder), tmp_path) != first
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (TINY_LLAMA, "model type llama"),
        (TINY_MIXED, "mixed"),
        (TINY_QWEN3 | {"use_qk_norm": False}, "qk-norm"),
        (TINY_MOE | {"norm_topk_prob": False}, "sum to one"),
    ],
)
def test_what_llama_cpp_lacks_is_refused_by_name(
    raw: dict[str, Any], reason: str, checkpoint: Make, tmp_path: Path
) -> None:
    folder = checkpoint(raw)
    with pytest.raises(UnsupportedModel, match=reason):
        gguf_copy(folder, config_of(folder), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("raw", [TINY_QWEN3, TINY_MOE], ids=["dense", "moe"])
def test_llama_cpp_says_what_lluda_says(raw: dict[str, Any], checkpoint: Make, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is an optional peer (lluda[bench])")
    from lluda.bench.engines.llama_cpp import LlamaCppSession
    from lluda.bench.engines.lluda import LludaSession

    folder = checkpoint(raw, "F32")
    job = Job(engine="lluda", model=str(folder), format="F32", vocab_size=512, context=1024)
    ours = LludaSession(job)
    theirs = LlamaCppSession(
        Job(engine="llama.cpp", model=str(gguf_copy(folder, config_of(folder), tmp_path)), vocab_size=512, context=1024)
    )
    chosen: list[tuple[int, int]] = []
    for streams in (1, 3):
        prompts = [job.prompt(20, stream) for stream in range(streams)]
        tokens, also = ours.start(prompts), theirs.start(prompts)
        for _ in range(10):
            chosen += zip(tokens, also, strict=True)
            # Both go on from lluda's choice: llama.cpp keeps its cache in F16, so a near tie may fall either way.
            tokens, also = ours.step(tokens), theirs.step(tokens)
    agreed = sum(a == b for a, b in chosen)
    assert agreed >= len(chosen) - 2, f"{agreed} of {len(chosen)}"
    assert theirs.info.format == "F32"
