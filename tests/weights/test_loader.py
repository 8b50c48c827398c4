from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from lluda.errors import CorruptFile, InvalidRequest, UnsupportedModel
from lluda.parameters import ParameterSpec
from lluda.weights.checkpoint import open_checkpoint
from lluda.weights.loader import load_tensors

SPECS = [
    ParameterSpec("embed", (8, 4), "embedding"),
    ParameterSpec("w", (4, 4), "matrix"),
    ParameterSpec("norm", (4,), "norm"),
    ParameterSpec("head", (8, 4), "matrix", tied_to="embed"),
]


def tensors() -> dict[str, torch.Tensor]:
    return {"embed": torch.randn(8, 4).bfloat16(), "w": torch.randn(4, 4).bfloat16(), "norm": torch.ones(4).bfloat16()}


def to_dtype(dtype):
    """Places matrices in ``dtype``, the rest as stored."""

    def take(spec, stored):
        values = stored.decode()
        taken = values.to(dtype) if spec.role in ("matrix", "embedding") else values
        return taken, taken is values

    return take


def load(folder, stored, dtype=torch.bfloat16, **options):
    save_file(stored, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return load_tensors(open_checkpoint(folder), SPECS, take=to_dtype(dtype), **options)


def test_everything_declared_is_loaded_and_nothing_else(tmp_path):
    stored = tensors()
    loaded, report = load(tmp_path, stored)
    assert {name: t.tolist() for name, t in loaded.items()} == {name: t.tolist() for name, t in stored.items()}
    assert (report.loaded, report.tied, report.stored_twice, report.converted) == (3, ("head",), (), 0)
    assert report.nbytes == 2 * (32 + 16 + 4)


def test_a_stored_tied_head_is_tolerated_and_reported(tmp_path):
    stored = tensors()
    loaded, report = load(tmp_path, stored | {"head": stored["embed"].clone()})
    assert "head" not in loaded
    assert report.stored_twice == ("head",)


def test_matrices_are_converted_to_the_compute_dtype(tmp_path):
    loaded, report = load(tmp_path, tensors(), dtype=torch.float32)
    assert loaded["w"].dtype == torch.float32
    assert report.converted == 2


def test_progress_ends_at_the_total(tmp_path):
    calls = []
    load(tmp_path, tensors(), progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (104, 104)


def test_a11_missing_unexpected_and_misshapen_are_all_named(tmp_path):
    stored = tensors()
    del stored["w"]
    stored |= {"norm": torch.ones(5), "extra.0": torch.ones(1), "extra.1": torch.ones(1)}
    with pytest.raises(CorruptFile) as error:
        load(tmp_path, stored)
    text = str(error.value)
    assert "1 missing tensors: w" in text
    assert "norm (expected [4], found [5])" in text
    assert "2 unexpected tensors: extra.0, extra.1 (--allow-unexpected" in text


def test_a11_only_the_first_ten_are_listed(tmp_path):
    stored = tensors() | {f"extra.{i:02}": torch.ones(1) for i in range(25)}
    with pytest.raises(CorruptFile, match=r"extra\.09 and 15 more"):
        load(tmp_path, stored)


def test_a11_unexpected_may_be_allowed_and_is_reported(tmp_path):
    _, report = load(tmp_path, tensors() | {"extra": torch.ones(1)}, allow_unexpected=True)
    assert report.unexpected == ("extra",)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8], ids=["fp8", "int8"])
def test_a11_types_that_are_no_plain_numbers(tmp_path, dtype):
    with pytest.raises(UnsupportedModel, match="w is stored as"):
        load(tmp_path, tensors() | {"w": torch.zeros(4, 4).to(dtype)})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a10_nan_and_infinity_are_reported_and_refused(tmp_path, value):
    stored = tensors()
    stored["w"][1, 2] = value
    _, report = load(tmp_path, stored)
    assert report.suspicious == ("w holds NaN or infinity",)
    with pytest.raises(CorruptFile, match="w holds NaN or infinity"):
        load(tmp_path, stored, check="fail")
    assert load(tmp_path, stored, check="off")[1].suspicious == ()


def test_a10_a_norm_of_zeros(tmp_path):
    stored = tensors() | {"norm": torch.zeros(4)}
    assert load(tmp_path, stored)[1].suspicious == ("norm is a norm of zeros",)


def test_an_unknown_check_is_refused(tmp_path):
    with pytest.raises(InvalidRequest, match="warn, fail, off"):
        load(tmp_path, tensors(), check="maybe")
