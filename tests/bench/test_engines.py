"""The engines compute the same thing: what is compared in speed must be compared in what it does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lluda.backends.cpu.native_library import native_library
from lluda.bench.engines import ENGINES, PEERS, require_peer
from lluda.bench.engines.lluda import LludaSession
from lluda.bench.process.job import Job
from lluda.bench.process.peer_files import prepare_files
from lluda.config.model import ModelConfig
from lluda.convert.gguf_metadata import text_metadata
from lluda.convert.quantize import TypeChoice, write_quantized
from lluda.errors import InvalidRequest, NativeLibraryError, UnsupportedModel
from lluda.models.causal_lm import causal_lm_parameters
from lluda.weights.checkpoint import open_checkpoint, read_config
from tests.conftest import TINY_LLAMA, TINY_MIXED, TINY_MOE, TINY_QWEN3

Make = Callable[..., Path]


def job_for(folder: Path, engine: str = "lluda", name: str = "BF16") -> Job:
    return Job(engine=engine, model=str(folder), format=name, vocab_size=512, context=1024)


@pytest.mark.parametrize("raw", [TINY_QWEN3, TINY_MOE, TINY_LLAMA], ids=["dense", "moe", "llama"])
def test_streams_together_say_what_each_says_alone(raw: dict[str, Any], checkpoint: Make) -> None:
    session = LludaSession(job_for(checkpoint(raw, "F32"), name="F32"))
    prompts = [job_for(Path()).prompt(9, stream) for stream in range(3)]
    together = [session.start(prompts)]
    for _ in range(4):
        together.append(session.step(together[-1]))
    for stream, prompt in enumerate(prompts):
        alone = [session.start([prompt])[0]]
        for _ in range(4):
            alone.append(session.step([alone[-1]])[0])
        assert alone == [tokens[stream] for tokens in together]


@pytest.mark.parametrize("raw", [TINY_QWEN3, TINY_MOE], ids=["dense", "moe"])
def test_transformers_says_what_lluda_says(raw: dict[str, Any], checkpoint: Make) -> None:
    pytest.importorskip("transformers", reason="transformers is an optional peer (lluda[bench])")
    from lluda.bench.engines.transformers import open_session as open_theirs

    folder = checkpoint(raw)
    ours, theirs = LludaSession(job_for(folder)), open_theirs(job_for(folder, "transformers"))
    agreed = 0
    for stream in range(8):
        prompts = [job_for(folder).prompt(16, 2 * stream), job_for(folder).prompt(16, 2 * stream + 1)]
        agreed += sum(a == b for a, b in zip(ours.start(prompts), theirs.start(prompts), strict=True))
    # BF16 rounds differently in the two: near ties may fall either way.
    assert agreed >= 13
    assert theirs.info.format == "BF16"


def test_formats_are_what_the_job_says(checkpoint: Make) -> None:
    folder = checkpoint(TINY_QWEN3)
    # Norms are float32 in memory, so a little more than two.
    assert 2.0 < LludaSession(job_for(folder)).info.bytes_per_weight < 2.02
    assert LludaSession(job_for(folder, name="F32")).info.bytes_per_weight == 4.0
    with pytest.raises(InvalidRequest, match="BF16"):
        LludaSession(job_for(folder, name="Q1"))


def test_packed_weights_count_the_bytes_that_are_read(checkpoint: Make) -> None:
    try:
        native_library()
    except NativeLibraryError as error:
        pytest.skip(f"the native library is not built: {error}")
    wide = TINY_QWEN3 | {"hidden_size": 512, "intermediate_size": 512, "head_dim": 128}
    assert 1.5 < LludaSession(job_for(checkpoint(wide), name="packed")).info.bytes_per_weight < 1.6


def test_q8_0_is_measured_of_files_that_have_it(checkpoint: Make, tmp_path: Path) -> None:
    folder, file = checkpoint(TINY_QWEN3), tmp_path / "q8.gguf"
    specs = causal_lm_parameters(ModelConfig.from_hf(TINY_QWEN3).text)
    metadata = text_metadata(ModelConfig.from_hf(TINY_QWEN3), "tiny", "q8_0") | {"tokenizer.ggml.model": "none"}
    write_quantized(open_checkpoint(folder), file, specs, TypeChoice("q8_0"), metadata)
    infos = [LludaSession(job_for(file, name=name)).info for name in ("Q8_0", "Q8_0-rounded", "BF16")]
    assert [info.format for info in infos] == ["Q8_0", "Q8_0-rounded", "Q8_0"]
    assert all(1.06 < info.bytes_per_weight < 1.1 for info in infos)
    assert ["rows rounded" in info.settings for info in infos] == [False, True, False]
    with pytest.raises(InvalidRequest, match="lluda quantize"):
        LludaSession(job_for(folder, name="Q8_0"))


def test_unknown_peers_are_refused_with_the_known_ones() -> None:
    assert all(require_peer(name) == name for name in PEERS)
    assert set(PEERS) < set(ENGINES)
    with pytest.raises(InvalidRequest, match=r"llama\.cpp"):
        require_peer("vllm")


def test_mistralrs_gets_the_same_weights_and_a_tokenizer_of_numbers(checkpoint: Make, tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    folder = checkpoint(TINY_QWEN3)
    config = ModelConfig.from_hf(read_config(folder))
    prepared = Path(prepare_files("mistralrs", folder, config, tmp_path, lambda _done, _total: None))
    assert (prepared / "model.safetensors").resolve() == (folder / "model.safetensors").resolve()
    assert ModelConfig.from_hf(read_config(prepared)) == config
    tokenizer = tokenizers.Tokenizer.from_file(str(prepared / "tokenizer.json"))
    assert tokenizer.encode("t7 t511 t0").ids == [7, 511, 0]


@pytest.mark.parametrize(
    ("engine", "path", "raw"), [("mistralrs", "m.gguf", TINY_QWEN3), ("transformers", "m", TINY_MIXED)]
)
def test_what_a_peer_cannot_run_is_refused(engine: str, path: str, raw: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=engine):
        prepare_files(engine, Path(path), ModelConfig.from_hf(raw), tmp_path, lambda _done, _total: None)
