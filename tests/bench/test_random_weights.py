"""The bench on random weights: what it refuses, and what it measures, on a CPU and on a GPU."""

from __future__ import annotations

import json
from itertools import product

import pytest
import torch

from lluda.bench.engines import lluda_speech
from lluda.bench.engines.lluda_speech import LludaSpeech
from lluda.bench.measured import speech
from lluda.bench.process.job import Plan
from lluda.bench.random_weights import require_memory
from lluda.bench.runner import Settings, run_bench
from lluda.bench.source import read_random_config
from lluda.cli.main import main
from lluda.errors import InvalidRequest, LimitExceeded, OutOfMemory
from lluda.models.build import all_parameters
from tests.cli.omni import omni_config
from tests.conftest import TINY_QWEN3
from tests.engine.speech.test_speech import config as omni_speaking

ON_GPU = torch.cuda.is_available()
PLAN = Plan(tests=("pp", "tg", "speech", "audio", "turn"), prompts=(5, 200), generate=4)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TINY_QWEN3))
    return tmp_path


def test_a_device_that_there_is_not_is_refused(folder):
    with pytest.raises(InvalidRequest, match=r"device 'cuda:99' cannot be used"):
        run_bench(str(folder), Settings(random=True, device="cuda:99"))


@pytest.mark.skipif(ON_GPU, reason="this machine has a GPU")
def test_without_a_gpu_it_says_so(folder, capsys):
    assert main(["bench", "--synth", str(folder)]) == 2
    assert "device 'cuda' cannot be used" in capsys.readouterr().err


def test_a_driver_that_is_too_old_is_named(folder, monkeypatch):
    def refused(*_, **__):
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nPlease update it")

    monkeypatch.setattr(torch, "ones", refused)
    with pytest.raises(InvalidRequest, match=r"'cuda' cannot be used: The NVIDIA driver .* too old .*; choose cpu"):
        run_bench(str(folder), Settings(random=True, device="cuda"))


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["--formats", "int3"], "format 'int3' does not exist; choose from BF16, packed"),
        (["--against", "llama.cpp"], "random weights are compared with transformers alone, not with llama.cpp"),
        (["--device", "cpu", "--prompt", "5000"], "the tests need 5001 positions but the model has 1024"),
        (["--gen", "0"], "generate must be at least 1, not 0"),
    ],
)
def test_what_it_does_not_measure_is_refused(folder, capsys, arguments, rule):
    assert main(["bench", "--synth", str(folder), *arguments]) == 2
    assert rule in capsys.readouterr().err


def test_prompts_longer_than_the_context_are_refused(folder):
    with pytest.raises(LimitExceeded, match=r"1101.*1024"):
        run_bench(str(folder), Settings(random=True, plan=Plan(tests=("pp",), prompts=(1100,))))


def test_a_card_that_is_too_small_is_told_by_how_much_and_what_fits(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(omni_config()))
    config, least = read_random_config(tmp_path), 1 << 27
    weights = sum(spec.elements for spec in all_parameters(config))
    require_memory(config, "BF16", speech=True, device="cuda", free=least + int(1.5 * 2 * weights))
    for free, remedy in (
        (least + int(1.5 * 1.6 * weights), "packed weights fit"),
        (least + int(1.5 * 1.1 * weights), "Q8_0 weights fit"),
        (least, "take a smaller config"),
    ):
        with pytest.raises(OutOfMemory, match=rf"GB on cuda but .* GB too few; .*{remedy}"):
            require_memory(config, "BF16", speech=True, device="cuda", free=free)


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("name", ["BF16", "packed", "Q8_0"])
@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not ON_GPU, reason="there is no GPU"))]
)
def test_a_small_network_is_measured(folder, device, name):
    settings = Settings(random=True, device=device, formats=(name.lower(),), plan=PLAN, repeat=2, threads=1)
    report = run_bench(str(folder), settings)
    assert [state.status for state in report.engines] == ["ok"], report.engines
    assert {row.test: len(row.samples) for row in report.rows} == {"pp5": 2, "pp200": 2, "tg4": 2, "tg4_sampled": 2}
    assert all(row.median > 0 for row in report.rows)
    assert {row.format for row in report.rows} == {name}
    assert all((row.roofline_fraction is not None) == row.test.startswith("tg") for row in report.rows)
    assert report.bandwidth is not None and report.bandwidth.median > 0
    assert (report.model.path, report.model.model_type) == (str(folder), "qwen3")
    assert (report.settings.repeat, report.settings.threads) == (2, 1)
    assert report.to_json()["settings"]["options"]["random"] is True


@pytest.mark.usefixtures("in_this_process")
def test_speech_sound_and_a_turn_of_a_model_that_speaks(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(omni_speaking()))
    monkeypatch.setattr(speech, "FRAMES", 4)
    monkeypatch.setattr(lluda_speech, "TURN_FRAMES", 2)
    plan = Plan(tests=("speech", "audio", "turn"))
    report = run_bench(str(tmp_path), Settings(random=True, plan=plan, repeat=2, threads=1))
    assert not report.failed, report.engines
    expected = dict.fromkeys(
        ("code_predictor", "talker", "speech_frame", "frames1", "frames4", "code2wav1", "code2wav25", "audio10s"), "ms"
    )
    expected |= dict.fromkeys(("first_audio", "turn_first_audio"), "s")
    expected |= dict.fromkeys(("rtf", "turn_rtf"), "of real time")
    assert {row.test: row.unit for row in report.rows} == expected
    assert all(len(row.samples) == 2 and row.median > 0 for row in report.rows)


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("tried to allocate 9 GiB"), KeyError("a bug")], ids=repr)
def test_what_was_measured_before_a_failure_is_reported(tmp_path, monkeypatch, error):
    """Of lluda, in its speech, and of transformers."""
    pytest.importorskip("transformers", reason="transformers is an optional peer (lluda[bench])")
    from lluda.bench.engines import transformers

    (tmp_path / "config.json").write_text(json.dumps(omni_speaking()))

    def fails(*_):
        raise error

    monkeypatch.setattr(LludaSpeech, "turn", fails)
    monkeypatch.setattr(transformers, "_random_model", fails)
    plan = Plan(tests=("pp", "tg", "turn"), prompts=(5,), generate=2)
    settings = Settings(random=True, plan=plan, repeat=1, threads=1, against=("transformers",))
    report = run_bench(str(tmp_path), settings)
    assert {row.test for row in report.rows} == {"pp5", "tg2", "tg2_sampled"}
    assert [state.status for state in report.engines] == ["failed", "failed"]
    assert all(state.detail.endswith(f"{type(error).__name__}: {error}") for state in report.engines)
    assert report.failed


@pytest.mark.usefixtures("in_this_process")
def test_transformers_runs_the_same_config(folder):
    pytest.importorskip("transformers", reason="transformers is an optional peer (lluda[bench])")
    plan = Plan(tests=("pp", "tg"), prompts=(5,), generate=2)
    report = run_bench(str(folder), Settings(random=True, plan=plan, repeat=1, threads=1, against=("transformers",)))
    assert {(row.engine, row.test) for row in report.rows} == {
        *(("lluda", test) for test in ("pp5", "tg2", "tg2_sampled")),
        *(("transformers", test) for test in ("pp5", "tg2")),
    }


@pytest.mark.usefixtures("in_this_process")
def test_formats_side_by_side_without_speech(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(omni_speaking()))
    few = ["--device", "cpu", "--prompt", "5", "--gen", "2", "--repeat", "1", "--threads", "1", "--json"]
    assert main(["bench", "--synth", str(tmp_path), "--no-speech", "--formats", "bf16,F32", *few]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    tests = ("pp5", "tg2", "tg2_sampled", "audio10s", "products1", "products512", "products512_bf16")
    assert [(row["format"], row["test"]) for row in rows] == [*product(("BF16", "F32"), tests)]
