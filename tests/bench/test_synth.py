"""The bench of the cuda backend on random weights: what it refuses, on any machine; what it measures, on a GPU."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("triton", reason="the kernels of the cuda backend are Triton's: pip install triton")

from lluda.backends.q8_0 import decode
from lluda.bench.gpu import GpuSettings, read_synth_config, require_room, run_gpu_bench
from lluda.bench.synth_device import q8_0_blocks
from lluda.cli.main import main
from lluda.errors import InvalidRequest, OutOfMemory
from lluda.models.build import all_parameters, text_parameters
from lluda.weights.q8_0 import quantize
from tests.cli.omni import omni_config
from tests.conftest import TINY_QWEN3

ON_GPU = torch.cuda.is_available()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TINY_QWEN3))
    return tmp_path


@pytest.mark.parametrize(
    ("device", "rule"),
    [
        ("cuda:99", r"device 'cuda:99' cannot be used"),
        pytest.param("cpu", r"needs a GPU|makes its weights on a GPU", id="cpu"),
    ],
)
def test_a_device_that_is_no_gpu_is_refused(folder, device, rule):
    with pytest.raises(InvalidRequest, match=rule):
        run_gpu_bench(folder, GpuSettings(device=device))


@pytest.mark.skipif(ON_GPU, reason="this machine has a GPU")
def test_without_a_gpu_it_says_so(folder, capsys):
    assert main(["bench", "--synth", str(folder)]) == 2
    assert "device 'cuda' cannot be used" in capsys.readouterr().err


def test_a_driver_that_is_too_old_is_named(folder, monkeypatch):
    def refused(*_, **__):
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nPlease update it")

    monkeypatch.setattr(torch, "ones", refused)
    with pytest.raises(InvalidRequest, match=r"'cuda' cannot be used: The NVIDIA driver .* too old .*; choose cpu"):
        run_gpu_bench(folder, GpuSettings())


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


def test_weights_that_there_are_not_are_refused(folder):
    with pytest.raises(InvalidRequest, match="weights 'int3' are not one of bf16, packed, q8_0"):
        run_gpu_bench(folder, GpuSettings(weights="int3"))


def test_a_card_that_is_too_small_is_told_by_how_much_and_what_fits(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(omni_config()))
    config, reserve = read_synth_config(tmp_path), 2 << 30
    speaking, silent = (sum(spec.elements for spec in of(config)) for of in (all_parameters, text_parameters))
    require_room(config, GpuSettings(), "cuda", reserve + 2 * speaking)
    for free, remedy in (
        (reserve + int(1.6 * speaking), "packed BF16 weights fit"),
        (reserve + int(1.1 * speaking), "Q8_0 weights fit"),
        (reserve + 2 * silent - 9 * speaking, "take a smaller config"),
    ):
        with pytest.raises(OutOfMemory, match=rf"GB on cuda but .* GB too few; .*{remedy}"):
            require_room(config, GpuSettings(), "cuda", free)


def test_blocks_are_those_of_the_quantiser():
    values = (torch.randn(6, 64, generator=torch.Generator().manual_seed(0)) / 50).bfloat16()
    theirs = torch.from_numpy(quantize(values.float().numpy()))
    torch.testing.assert_close(decode(q8_0_blocks(values), torch.float32), decode(theirs, torch.float32), rtol=0,
                               atol=1e-3)  # fmt: skip


@pytest.mark.skipif(not ON_GPU, reason="there is no GPU")
@pytest.mark.parametrize("weights", ["bf16", "packed", "q8_0"])
def test_a_small_network_is_measured(folder, weights):
    report = run_gpu_bench(folder, GpuSettings(weights=weights, prompts=(5,), generate=4, repeat=1))
    assert {row.test for row in report.rows} == {"tg4", "pp5"}
    assert all(row.median > 0 for row in report.rows)
