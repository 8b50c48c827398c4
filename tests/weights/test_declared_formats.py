"""Matrices whose format safetensors has no dtype for: stored as bytes, declared in the metadata."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lluda.errors import CorruptFile
from lluda.formats.q8_0 import Q8_0
from lluda.formats.registry import FORMATS
from lluda.weights.safetensors.declared_formats import declaration
from lluda.weights.safetensors.file import SafetensorsFile
from tests.formats.stored_by_hand import q8_0_tensor


def test_any_format_can_be_declared(tmp_path: Path) -> None:
    written = q8_0_tensor(torch.randn(6, 64))
    norm = torch.ones(3).bfloat16()
    metadata = declaration(Q8_0, {"w": (6, 64)})
    save_file({"w": written.data, "norm": norm}, tmp_path / "x.safetensors", metadata=metadata)
    with SafetensorsFile(tmp_path / "x.safetensors") as file:
        stored = file.stored("w")
        assert (stored.format, stored.shape, file.entries["w"].dtype) == (Q8_0, (6, 64), "Q8_0")
        assert torch.equal(stored.data, written.data) and torch.equal(file.tensor("w"), written.decode())
        assert torch.equal(file.tensor("norm"), norm)


@pytest.mark.parametrize(
    ("shape", "rule"), [((8, 48), "rows must be a multiple of 32"), ((3, 32), "length does not fit its shape")]
)
def test_rules_of_the_format_are_told_with_the_tensors_name(tmp_path: Path, shape: tuple[int, int], rule: str) -> None:
    data = q8_0_tensor(torch.randn(6, 64)).data
    save_file({"w": data}, tmp_path / "x.safetensors", metadata=declaration(Q8_0, {"w": shape}))
    with SafetensorsFile(tmp_path / "x.safetensors") as file, pytest.raises(CorruptFile, match=rule) as error:
        file.tensor("w")
    assert "x.safetensors" in str(error.value) and "Q8_0 tensor 'w'" in str(error.value)


def test_a_tensor_that_two_formats_claim_is_refused(tmp_path: Path) -> None:
    data = q8_0_tensor(torch.randn(6, 64)).data
    both = declaration(Q8_0, {"w": (6, 64)}) | declaration(FORMATS["Q4_0"], {"w": (6, 64)})
    save_file({"w": data}, tmp_path / "x.safetensors", metadata=both)
    with pytest.raises(CorruptFile, match="must be stored as bytes"):
        SafetensorsFile(tmp_path / "x.safetensors")
