"""The verb: what it prints where, its exit codes, and what it refuses before any work."""

from __future__ import annotations

import json

import pytest

from lluda.cli.main import main
from tests.evaluation.conftest import TINY, checkpoint, damage

__all__ = ["checkpoint", "damage"]  # fixtures


@pytest.fixture
def model(checkpoint) -> str:
    return str(checkpoint(TINY["qwen3"]))


def test_json_on_stdout_progress_and_verdict_on_stderr(model, capsys):
    arguments = ["--reference", "transformers", "--dtype", "f32", "--tokens", "20", "--greedy", "4", "--json"]
    assert main(["validate", "-m", model, *arguments]) == 0
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert (document["tokens"], document["input"], document["dtype"]) == (20, "random ids, seed 0", "f32")
    assert document["passed"] is True
    assert "running transformers" in printed.err
    assert "passed: largest logit error / logit range" in printed.err


def test_the_table_shows_every_stage(model, capsys):
    assert main(["validate", "-m", model, "--dtype", "bf16", "--tokens", "64", "--cached", "--greedy", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "model: qwen3, 162,432 parameters, bf16"
    assert lines[1] == "64 tokens (random ids, seed 0), token by token, against transformers"
    stages = [line.split()[0] for line in lines if line.startswith(("embeddings", "layers.", "norm", "logits"))]
    assert stages == ["embeddings", "layers.0", "layers.1", "layers.2", "norm", "logits"]
    assert all(len(line) <= 118 for line in lines)
    assert lines[-1].startswith("greedy: ")


def test_a_failed_bar_is_named_and_the_exit_code_is_1(model, damage, capsys):
    damage("model.layers.2.mlp.gate_proj.weight", lambda weight: weight.neg_())
    assert main(["validate", "-m", model, "--dtype", "f32", "--tokens", "20", "--greedy", "4"]) == 1
    printed = capsys.readouterr()
    assert "FAILED: largest logit error / logit range" in printed.err
    assert "differs: lluda" in printed.out


def test_not_judged_is_said(model, capsys):
    arguments = ["--dtype", "bf16", "--tokens", "8", "--greedy", "0", "--no-float64", "--json"]
    assert main(["validate", "-m", model, *arguments]) == 0
    printed = capsys.readouterr()
    assert "not judged" in printed.err
    assert json.loads(printed.out)["passed"] is None


def test_seed_chunks_and_plot(model, tmp_path, capsys):
    plot = tmp_path / "errors.png"
    arguments = ["--seed", "5", "--prefill-chunk", "7", "--tokens", "20", "--greedy", "0", "--dtype", "bf16"]
    main(["validate", "-m", model, *arguments, "--plot", str(plot), "--json"])
    document = json.loads(capsys.readouterr().out)
    assert (document["mode"], document["input"]) == ("chunks of 7", "random ids, seed 5")
    assert plot.stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokens", "0"], "--tokens must be at least 1, not 0"),
        (["--tokens", "-3"], "--tokens must be at least 1, not -3"),
        (["--tokens", "2000"], "exceed the context of 1024"),
        (["--greedy", "-1"], "not -1"),
        (["--dtype", "fp8"], "dtype 'fp8' is not one of"),
        (["--reference", "onnx"], "'onnx' is not one of transformers, llama.cpp"),
        (["--plot", "errors.jpg"], "must end in .png"),
        (["--prompt", ""], "the prompt is empty"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, model, capsys):
    assert main(["validate", "-m", model, *arguments]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("lluda validate: ")
    assert message in error


@pytest.fixture
def words(monkeypatch) -> None:
    """A tokenizer for a checkpoint that has none."""
    from lluda.engine import loading

    monkeypatch.setattr(loading, "load_tokenizer", lambda _: type("Words", (), {"encode": lambda *_, **__: [1, 2, 3]}))


def test_a_prompt_is_cut_to_the_tokens_asked_for(model, words, capsys):
    arguments = ["--prompt", "three words here", "--tokens", "2", "--greedy", "0", "--dtype", "f32", "--json"]
    assert main(["validate", "-m", model, *arguments]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["tokens"], document["input"]) == (2, "a prompt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "llama.cpp reads only .gguf files"),
        (["--dtype", "bf16"], "against llama.cpp lluda runs in f32, not 'bf16'"),
    ],
)
def test_llama_cpp_wants_a_gguf_file_and_float32(arguments, message, model, words, capsys):
    assert main(["validate", "-m", model, "--reference", "llama.cpp", "--greedy", "0", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "running" not in error
