"""The verb: what it prints where, its exit codes, and what it refuses before any work."""

from __future__ import annotations

import json

import pytest

from lluda.cli.main import main
from lluda.models.components import COMPONENTS
from tests.evaluation.conftest import TINY, checkpoint, damage, write_omni

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
    assert "text: running transformers" in printed.err
    assert "passed: text: largest logit error / logit range" in printed.err


def test_the_table_shows_every_stage(model, capsys):
    assert main(["validate", "-m", model, "--dtype", "bf16", "--tokens", "64", "--cached", "--greedy", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "model: qwen3, 162,432 parameters, bf16"
    assert lines[1] == "64 tokens (random ids, seed 0), token by token, against transformers"
    assert "text" in lines
    stages = [line.split()[0] for line in lines if line.startswith(("embeddings", "layers.", "norm", "logits"))]
    assert stages == ["embeddings", "layers.0", "layers.1", "layers.2", "norm", "logits"]
    assert all(len(line) <= 118 for line in lines)
    assert any(line.startswith("greedy: ") for line in lines)
    assert lines[-1].startswith("first divergence (beyond 0.25 of a row's range): ")


def test_a_failed_threshold_is_named_and_the_exit_code_is_1(model, damage, capsys):
    damage("model.layers.2.mlp.gate_proj.weight", lambda weight: weight.neg_())
    assert main(["validate", "-m", model, "--dtype", "f32", "--tokens", "20", "--greedy", "4"]) == 1
    printed = capsys.readouterr()
    assert "FAILED: text: largest logit error / logit range" in printed.err
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
    from lluda.engine.loading import tokenizer

    monkeypatch.setattr(
        tokenizer, "load_tokenizer", lambda _: type("Words", (), {"encode": lambda *_, **__: [1, 2, 3]})
    )


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


@pytest.fixture(scope="module")
def omni(tmp_path_factory) -> str:
    pytest.importorskip("transformers", reason="transformers is the reference here")
    return str(write_omni(tmp_path_factory.mktemp("omni") / "model"))


OMNI = ["--dtype", "f32", "--no-float64", "--threads", "1", "--frames", "4", "--greedy", "3"]


def test_an_omni_model_is_validated_component_by_component(omni, tmp_path, capsys):
    plot = tmp_path / "errors.png"
    assert main(["validate", "-m", omni, *OMNI, "--plot", str(plot)]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0] == "model: qwen3_omni_moe, 1,633,873 parameters, f32"
    assert "tokens (random ids, seed 0, synthetic media, audio, image, video), one prefill, against" in lines[1]
    names = [component.name for component in COMPONENTS]
    assert [line for line in lines if line in names] == names
    assert "greedy: all 3 tokens equal" in lines
    assert "greedy: all 12 codes equal" in lines
    assert any(line.startswith("corrected expectation: ") for line in lines)
    assert lines[-1] == "first divergence (beyond 0.0001 of a row's range): nowhere"
    assert "passed: code2wav: largest error of a sample" in printed.err
    assert plot.stat().st_size > 1000


def test_only_one_component_on_a_picture_of_ones_own(omni, tmp_path, capsys):
    from PIL import Image

    Image.new("RGB", (64, 96), (200, 30, 60)).save(tmp_path / "red.png")
    arguments = ["--only", "vision_encoder", "--image", str(tmp_path / "red.png"), "--json"]
    assert main(["validate", "-m", omni, *OMNI, *arguments]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["media"] == ["image"]
    assert [component["component"] for component in document["components"]] == ["vision_encoder"]
    assert document["passed"] is True


def test_the_first_bad_rung_of_an_omni_model_is_named(omni, damage, capsys):
    damage("code2wav.upsample.1.1.pwconv2.weight", lambda weight: weight.neg_())
    assert main(["validate", "-m", omni, *OMNI, "--only", "code2wav"]) == 1
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1].endswith(": code2wav upsample.1, row 0")
    assert "FAILED: code2wav: largest error of a sample" in printed.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "ear"], "component 'ear' is not one of audio_encoder, vision_encoder, thinker"),
        (["--reference", "llama.cpp"], "an Omni model is held against transformers"),
        (["--image", "absent.png"], "there is no such file"),
        (["--use-audio"], "are about videos"),
        (["--frames", "0"], "frames must be at least 1, not 0"),
        (["--tokens", "0"], "--tokens must be at least 1, not 0"),
        (["--speaker", "bob", "--only", "talker"], "speaker 'bob' does not exist"),
    ],
)
def test_what_an_omni_model_cannot_be_asked(arguments, message, omni, capsys):
    assert main(["validate", "-m", omni, *OMNI, *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--only", "thinker"], ["--frames", "3"], ["--speaker", "ethan"]])
def test_a_text_model_has_no_components(arguments, model, capsys):
    assert main(["validate", "-m", model, *arguments]) == 2
    assert "is a text model: --only, --frames, --speaker and media are for Omni models" in capsys.readouterr().err
