"""What a load reads of the weights (C6): by default no page of a matrix that stays mapped. Pages are counted in the
kernel's own list of them, so nothing here depends on time."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import lluda
from lluda.config.model import ModelConfig
from lluda.convert.synth import synthesize
from lluda.formats.stored_tensor import StoredTensor
from lluda.models.causal_lm import causal_lm_parameters
from lluda.parameters import ParameterSpec
from lluda.weights.checkpoint import open_checkpoint
from lluda.weights.loader import load_tensors
from tests.conftest import TINY_QWEN3
from tests.inputs.conftest import write_tiny

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/smaps")

SPECS = [
    ParameterSpec("w", (1024, 2048), "matrix"),
    ParameterSpec("copied", (1024, 2048), "matrix"),
    ParameterSpec("norm", (64,), "norm"),
]


def read_bytes(path: Path) -> int:
    """Bytes of ``path`` whose pages this process's maps hold."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            total += 1024 * int(line.split()[1])
    return total


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    values = torch.randn(1024, 2048).bfloat16()
    strange = values.clone()
    strange[5, 5] = float("nan")
    stored = {"w": strange, "copied": strange.clone(), "norm": torch.ones(64).bfloat16()}
    save_file(stored, tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("check", "is_read", "reported"),
    [("auto", False, ["copied"]), ("warn", True, ["w", "copied"]), ("off", False, [])],
)
def test_c6_only_a_check_that_was_asked_for_reads_what_stays_mapped(
    folder: Path, check: str, is_read: bool, reported: list[str]
) -> None:
    file = folder / "model.safetensors"

    def take(spec: ParameterSpec, stored: StoredTensor) -> tuple[torch.Tensor, bool]:
        values = stored.decode()
        return (values.float(), False) if spec.name == "copied" else (values, True)

    placed, report = load_tensors(open_checkpoint(folder), SPECS, take=take, check=check)
    assert report.suspicious == tuple(f"{name} holds NaN or infinity" for name in reported)
    nbytes = placed["w"].nbytes
    # The copied one is let go, so that what is left is the mapped one; neighbours of a page may come with it.
    assert read_bytes(file) >= nbytes if is_read else read_bytes(file) < nbytes // 4
    assert placed["w"][0, 0].isfinite()
    placed["w"].float().sum()
    assert read_bytes(file) >= nbytes


def test_c6_a_model_is_loaded_without_reading_its_matrices(tmp_path: Path) -> None:
    raw = TINY_QWEN3 | {"vocab_size": 20_000, "torch_dtype": "float32"}
    folder = tmp_path / "m"
    synthesize(causal_lm_parameters(ModelConfig.from_hf(raw).text), folder, config=raw, dtype="F32")
    write_tiny(folder)
    file = folder / "model.safetensors"
    model = lluda.load(folder, backend="reference", dtype="f32")
    assert read_bytes(file) < file.stat().st_size // 4
    model.generate([1, 2, 3], max_tokens=1, temperature=0)
    assert read_bytes(file) > file.stat().st_size // 2
