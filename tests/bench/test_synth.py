"""The bench on random weights: what it refuses, and what it measures, on a CPU and on a GPU."""

from __future__ import annotations

import json

import pytest
import torch

from lluda.bench import bandwidth
from lluda.bench.synth import SynthSettings, read_synth_config, require_room, run_synth_bench
from lluda.cli.main import main
from lluda.errors import InvalidRequest, OutOfMemory
from lluda.models.build import all_parameters, text_parameters
from tests.cli.omni import omni_config
from tests.conftest import TINY_QWEN3
from tests.engine.test_speech import config as omni_speaking

ON_GPU = torch.cuda.is_available()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TINY_QWEN3))
    return tmp_path


def test_a_device_that_there_is_not_is_refused(folder):
    with pytest.raises(InvalidRequest, match=r"device 'cuda:99' cannot be used"):
        run_synth_bench(folder, SynthSettings(device="cuda:99"))


@pytest.mark.skipif(ON_GPU, reason="this machine has a GPU")
def test_without_a_gpu_it_says_so(folder, capsys):
    assert main(["bench", "--synth", str(folder)]) == 2
    assert "device 'cuda' cannot be used" in capsys.readouterr().err


def test_a_driver_that_is_too_old_is_named(folder, monkeypatch):
    def refused(*_, **__):
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nPlease update it")

    monkeypatch.setattr(torch, "ones", refused)
    with pytest.raises(InvalidRequest, match=r"'cuda' cannot be used: The NVIDIA driver .* too old .*; choose cpu"):
        run_synth_bench(folder, SynthSettings())


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["--formats", "BF16,packed"], "--synth measures one format"),
        (["--formats", "F32"], "--synth measures one format"),
        (["--against", "llama.cpp"], "--synth compares with transformers alone"),
    ],
)
def test_what_it_does_not_measure_is_refused(folder, capsys, arguments, rule):
    assert main(["bench", "--synth", str(folder), *arguments]) == 2
    assert rule in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ({"weights": "int3"}, "weights 'int3' are not one of bf16, packed, q8_0"),
        ({"prompts": (5, 4097)}, "lengths must be from 1 to 4096"),
        ({"prompts": ()}, "lengths must be from 1 to 4096"),
        ({"generate": 0}, "0 tokens to decode: must be from 1 to 3968"),
        ({"generate": 3969}, "3969 tokens to decode: must be from 1 to 3968"),
        ({"repeat": 0}, r"repeat \(0\) and threads"),
        ({"threads": 0}, r"threads \(0\) must be at least 1"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(wrong, rule):
    with pytest.raises(InvalidRequest, match=rule):
        SynthSettings(**wrong)


def test_a_card_that_is_too_small_is_told_by_how_much_and_what_fits(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(omni_config()))
    config, reserve = read_synth_config(tmp_path), 2 << 30
    speaking, silent = (sum(spec.elements for spec in of(config)) for of in (all_parameters, text_parameters))
    require_room(config, SynthSettings(), "cuda", reserve + 2 * speaking)
    for free, remedy in (
        (reserve + int(1.6 * speaking), "packed BF16 weights fit"),
        (reserve + int(1.1 * speaking), "Q8_0 weights fit"),
        (reserve + 2 * silent - 9 * speaking, "take a smaller config"),
    ):
        with pytest.raises(OutOfMemory, match=rf"GB on cuda but .* GB too few; .*{remedy}"):
            require_room(config, SynthSettings(), "cuda", free)


@pytest.mark.parametrize("weights", ["bf16", "packed", "q8_0"])
@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not ON_GPU, reason="there is no GPU"))]
)
def test_a_small_network_is_measured(folder, device, weights, monkeypatch):
    monkeypatch.setattr(bandwidth, "BUFFER_BYTES", 1 << 20)
    chosen = SynthSettings(device=device, weights=weights, prompts=(5, 200), generate=4, repeat=2, threads=1)
    report = run_synth_bench(folder, chosen)
    assert {row.test: len(row.samples) for row in report.rows} == {"tg4": 2, "pp5": 2, "pp200": 2}
    assert all(row.median > 0 for row in report.rows)
    assert report.bandwidth is not None and report.bandwidth.median > 0
    assert (report.model.path, report.model.model_type) == (str(folder), "qwen3")
    assert (report.settings.repeat, report.settings.threads) == (2, 1)
    assert report.to_json()["settings"]["options"]["weights"] == weights


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("tried to allocate 9 GiB"), KeyError("a bug")], ids=repr)
def test_what_was_measured_before_a_failure_is_reported(tmp_path, monkeypatch, capsys, error):
    """Of lluda, in its speech, and of transformers."""
    (tmp_path / "config.json").write_text(json.dumps(omni_speaking()))
    monkeypatch.setattr(bandwidth, "BUFFER_BYTES", 1 << 20)

    def fails(*_):
        raise error

    monkeypatch.setattr("lluda.bench.synth.speech_samples", fails)
    monkeypatch.setattr("lluda.bench.synth_peer.peer_samples", fails)
    chosen = SynthSettings(device="cpu", prompts=(5,), generate=2, repeat=1, threads=1, against=("transformers",))
    report = run_synth_bench(tmp_path, chosen)
    assert {row.test for row in report.rows} == {"tg2", "pp5"}
    assert [state.status for state in report.engines] == ["failed", "failed"]
    assert all(state.detail == f"{type(error).__name__}: {error}" for state in report.engines)
    assert report.failed
    assert "Traceback" in capsys.readouterr().err, "our own bugs are not hidden"
