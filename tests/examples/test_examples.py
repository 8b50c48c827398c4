"""Every example: usage text for a newcomer, public names only, and a run on a small model."""

from __future__ import annotations

import ast
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lluda
from lluda.cli.main import main
from tests.cli.conftest import write_model
from tests.cli.omni import write_omni, write_speaking_omni

FOLDER = Path(__file__).resolve().parents[2] / "examples"
EXAMPLES = sorted(path.name for path in FOLDER.glob("*.py"))


@pytest.fixture
def example(monkeypatch, capsys):
    """Runs an example as a script in this process: its exit code, stdout and stderr. Commands that it starts run in
    this process, too."""

    in_a_process = subprocess.run

    def command(arguments, **options):
        if list(arguments[:3]) != [sys.executable, "-m", "lluda"]:
            return in_a_process(arguments, **options)
        return subprocess.CompletedProcess(arguments, main([str(argument) for argument in arguments[3:]]))

    def run(name, *arguments):
        monkeypatch.setattr(subprocess, "run", command)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        code: object = 0
        try:
            runpy.run_path(str(FOLDER / name), run_name="__main__")
        except SystemExit as ended:
            code = ended.code
        monkeypatch.undo()
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize("name", EXAMPLES)
def test_help_is_the_usage(example, name):
    code, out, err = example(name, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: {name} ")
    assert f"python examples/{name} " in out


@pytest.mark.parametrize("name", EXAMPLES)
def test_without_arguments_the_usage_is_shown(example, name):
    code, out, err = example(name)
    assert (code, out) == (2, "")
    assert err.startswith(f"usage: {name} ")
    assert "arguments are required: model" in err


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_model_that_there_is_not_is_one_line(example, tmp_path, name):
    code, out, err = example(
        name, tmp_path / "absent", *{"omni_full_pipeline.py": "qa"}.get(name, "q" * ("omni" in name))
    )
    message = code if isinstance(code, str) else err.splitlines()[-1]
    assert code in (2, message)
    assert out == ""
    assert "absent: no such folder" in message


@pytest.mark.parametrize("name", EXAMPLES)
def test_only_public_names_are_used(name):
    tree = ast.parse((FOLDER / name).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert {alias.name for alias in node.names} <= {"lluda", *sys.stdlib_module_names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module in sys.stdlib_module_names
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "lluda":
            assert node.attr in lluda.__all__


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("examples") / "text")


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> Path:
    soundfile = pytest.importorskip("soundfile")
    path = tmp_path_factory.mktemp("examples") / "question.wav"
    soundfile.write(path, np.sin(np.arange(8000) / 9) * 0.3, 16000)
    return path


def test_generate(example, text):
    code, out, _ = example("qwen3_06b_generate.py", text)
    assert code == 0
    assert "tok/s]" in out


def test_validate(example, text):
    pytest.importorskip("transformers", reason="transformers is the reference here")
    code, out, err = example("qwen3_06b_validate.py", text, "--no-float64", "--tokens", "4", "--greedy", "2")
    assert code == 0, err
    assert out.count("against transformers") == 2


def test_bench(example, text):
    options = ["--against", "", "--tests", "load", "--repeat", "1", "--gen", "2", "--prompt", "4", "--threads", "1"]
    code, out, err = example("qwen3_06b_bench.py", text, *options)
    assert code == 0, err
    assert "load" in out


def test_audio_to_text(example, tmp_path, recording):
    code, out, _ = example("omni_audio_to_text.py", write_omni(tmp_path / "omni"), recording, "what?")
    assert code == 0
    assert "tokens of prompt in" in out


def test_a_picture(example, tmp_path):
    image = pytest.importorskip("PIL.Image")
    image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "p.png")
    code, out, _ = example("omni_thinker_text.py", write_omni(tmp_path / "omni"), tmp_path / "p.png")
    assert code == 0
    assert len(out.splitlines()) >= 3


def test_a_spoken_answer(example, tmp_path, recording):
    soundfile = pytest.importorskip("soundfile")
    model = write_speaking_omni(tmp_path / "omni")
    code, out, _ = example("omni_full_pipeline.py", model, recording, tmp_path / "answer.wav")
    assert code == 0
    assert " frames in " in out
    assert soundfile.info(tmp_path / "answer.wav").samplerate == 24000


def test_the_module_is_the_command():
    ended = subprocess.run([sys.executable, "-m", "lluda", "--version"], capture_output=True, text=True, check=True)
    assert ended.stdout == f"lluda {lluda.__version__}\n"
