"""Every report that a verb can make, end to end: its file is whole whatever becomes of stdout."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from lluda.bench.engines import lluda_speech
from lluda.bench.measured import speech
from lluda.cli.main import main
from lluda.cli.report import json_text
from tests.bench.conftest import in_this_process
from tests.cli.omni import write_speaking_omni

__all__ = ["in_this_process"]  # fixture

SYNTH = "--device cpu --backend reference --gen 2 --prompt 5 --repeat 1 --threads 1".split()
BENCH = "--tests load --gen 2 --prompt 5 --repeat 1 --threads 1".split()
VALIDATE = "--dtype f32 --no-float64 --threads 1 --tokens 4 --greedy 2".split()
REPORTS = {
    "inspect": (["inspect", "{text}"], {"path", "tensors", "components"}),
    "plan": (["plan", "{text}"], {"model", "weights", "total", "fits"}),
    "plan of a voice": (["plan", "{omni}", "--speech"], {"model", "weights", "total", "fits"}),
    "perplexity": (
        ["perplexity", "-m", "{text}", "--text", "{words}", "--context", "8", "--plot", "{plot}"],
        {"text", "tokens", "model"},
    ),
    "perplexity of voices": (
        [
            "perplexity",
            "-m",
            "{omni}",
            "--against",
            "{omni}",
            "--text",
            "{words}",
            "--speech",
            "--max-frames",
            "2",
            "--seed",
            "1",
        ],
        {"text", "frames", "codebooks"},
    ),
    "validate": (["validate", "-m", "{text}", *VALIDATE, "--plot", "{plot}"], {"kind", "model", "components"}),
    "validate an Omni model": (
        ["validate", "-m", "{omni}", *VALIDATE, "--only", "code2wav", "--frames", "2"],
        {"kind", "model", "components"},
    ),
    "bench": (["bench", "-m", "{text}", *BENCH], {"model", "machine", "settings", "rows", "ratios"}),
    "bench --synth": (["bench", "--synth", "{text}", *SYNTH], {"model", "machine", "settings", "rows", "ratios"}),
    "bench --synth of an Omni model": (
        ["bench", "--synth", "{omni}", *SYNTH, "--plot", "{plot}"],
        {"model", "machine", "settings", "rows", "ratios"},
    ),
    "bench --synth against transformers": (
        ["bench", "--synth", "{text}", *SYNTH, "--against", "transformers"],
        {"model", "machine", "settings", "rows", "ratios"},
    ),
}


@pytest.fixture(scope="module")
def omni(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_speaking_omni(tmp_path_factory.mktemp("report") / "omni")


@pytest.fixture
def arguments(model, omni, tmp_path, monkeypatch, in_this_process):
    """The arguments of a report, by its name in REPORTS, on small models and in little time."""
    monkeypatch.setattr(speech, "FRAMES", 2)
    monkeypatch.setattr(lluda_speech, "TURN_FRAMES", 2)
    words = tmp_path / "words.txt"
    words.write_text("hello world, and all who hear it")

    def of(name: str) -> list[str]:
        if "validate" in name or "transformers" in name:
            pytest.importorskip("transformers", reason="transformers is not installed")
        if "--plot" in REPORTS[name][0]:
            pytest.importorskip("matplotlib", reason="matplotlib is not installed")
        return [
            argument.format(text=model, omni=omni, words=words, plot=tmp_path / "p.png")
            for argument in REPORTS[name][0]
        ]

    return of


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("name", REPORTS)
def test_the_file_is_whole_when_stdout_is_full(arguments, name, tmp_path, monkeypatch, capsys):
    output = tmp_path / "report.json"
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main([*arguments(name), "--output", str(output)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].endswith(": input or output: No space left on device; free disk space")
    document = json.loads(output.read_text())
    assert REPORTS[name][1] <= set(document)
    assert "bench" not in name or document["rows"]
    assert (tmp_path / "p.png").is_file() is ("--plot" in REPORTS[name][0])


@pytest.mark.parametrize("name", [name for name in REPORTS if name not in ("bench", "bench --synth of an Omni model")])
def test_the_file_holds_what_is_printed(lluda, arguments, name, tmp_path):
    output = tmp_path / "report.json"
    printed = lluda(*arguments(name), "--json", "--output", output)
    assert printed.code == 0, printed.err
    assert output.read_text() == printed.out


def test_a_report_is_printed_though_its_file_cannot_be_written(lluda, model, tmp_path, monkeypatch):
    """The folder is there before the run and gone behind it."""
    from lluda.weights import checkpoint

    folder = tmp_path / "reports"
    folder.mkdir()
    monkeypatch.setattr(
        "lluda.cli.verbs.inspect.open_checkpoint", lambda path: [checkpoint.open_checkpoint(path), folder.rmdir()][0]
    )
    printed = lluda("inspect", model, "--json", "--output", folder / "a.json")
    assert printed.code == 1
    assert "a.json: cannot be written: " in printed.err
    assert json.loads(printed.out)["tensors"]


@pytest.mark.parametrize("verb", [["inspect"], ["plan"], ["validate", "-m"], ["bench", "-m"], ["bench", "--synth"]])
def test_a_file_that_could_not_be_written_is_refused_before_the_run(lluda, model, tmp_path, verb):
    printed = lluda(*verb, model, "--output", tmp_path / "absent" / "a.json")
    assert (printed.code, printed.out) == (2, "")
    assert "a.json: its folder does not exist" in printed.err
    printed = lluda(*verb, model, "--output", tmp_path)
    assert (printed.code, printed.out) == (2, "")
    assert f"{tmp_path}: is a folder" in printed.err


def test_json_is_strict():
    """RFC 8259 has no NaN; a file's name that is not UTF-8 has half a surrogate pair in Python."""
    text = json_text({"a": [1.5, float("nan"), float("-inf")], "path": "x\udcff", "é": (True, None)})
    assert json.loads(text) == {"a": [1.5, None, None], "path": "x\udcff", "é": [True, None]}
    assert "é" in text
    text.encode()


def test_a_reader_who_leaves_while_a_table_is_printed_is_no_error(arguments, monkeypatch, capsys):
    """rich ends the process with code 1 there."""

    reading, writing = os.pipe()
    os.close(reading)
    monkeypatch.setattr(sys, "stdout", os.fdopen(writing, "w"))
    assert main(arguments("bench --synth")) == 0
