"""Q8_0 weights in a model: products of the blocks are products of their values, on every backend, mixed or not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lluda.backends import select_backend
from lluda.backends.cpu.native_library import native_library
from lluda.backends.executor.q8_weight import Q8Weight
from lluda.convert.quantize import TypeChoice
from lluda.convert.quantize_model import quantize_model
from lluda.engine.loading.load_options import LoadOptions
from lluda.engine.loading.loading import load_network
from lluda.engine.loading.model_files import ModelFiles
from lluda.errors import NativeLibraryError
from lluda.evaluation.inputs import random_ids
from lluda.evaluation.lluda_components import load_decoder
from lluda.formats.q8_0 import round_rows
from lluda.formats.stored_tensor import StoredTensor
from tests.conftest import TINY_MOE, TINY_QWEN3
from tests.convert.test_quantize import checkpoint
from tests.formats.stored_by_hand import q8_0_tensor

BACKENDS = ("reference", "cpu")
MOE = TINY_MOE | {"moe_intermediate_size": 64}


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "cpu":
        try:
            native_library()
        except NativeLibraryError as error:
            pytest.skip(f"the native library is not built: {error}")
    return str(request.param)


def stored_matrix(out: int, columns: int) -> StoredTensor:
    return q8_0_tensor(torch.randn(out, columns, generator=torch.Generator().manual_seed(out)))


@pytest.mark.parametrize("rows", [1, 5, 40])
def test_products_lookups_and_heads_are_those_of_the_values(backend: str, rows: int) -> None:
    made = select_backend(backend, "cpu", "bf16")
    stored = stored_matrix(70, 96)
    weight, reads_stored = made.take(stored, "matrix")
    assert reads_stored and not made.decoded
    assert (weight.format, weight.out_features, weight.in_features, weight.nbytes) == ("Q8_0", 70, 96, 70 * 102)
    values = stored.decode()
    x, bias = torch.randn(rows, 96).bfloat16(), torch.randn(70)
    expected = x.float() @ values.T
    torch.testing.assert_close(made.linear(x, weight).float(), expected, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(made.linear(x, weight, bias).float(), expected + bias, rtol=1e-2, atol=1e-2)
    ids = torch.tensor([69, 0, 7])
    assert torch.equal(made.embedding(weight, ids), values[ids])


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_exact_runs_take_the_values(dtype: str) -> None:
    made = select_backend("reference", "cpu", dtype)
    weight, reads_stored = made.take(stored_matrix(4, 32), "matrix")
    assert (weight.format, reads_stored, made.decoded) == (dtype.upper(), False, {"Q8_0": 1})
    assert "1 Q8_0 matrices decoded for want of a kernel" in made.describe()


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_rows_are_rounded_as_asked(dtype: str) -> None:
    made = select_backend("reference", "cpu", dtype, activations="q8_0")
    stored = stored_matrix(70, 96)
    weight, _ = made.take(stored, "matrix")
    assert isinstance(weight, Q8Weight) and "rows rounded to Q8_0" in made.describe()
    x = torch.randn(5, 96).to(made.precision.compute)
    # Ties, of which BF16 has many, are the only rows in which ours are not the package's (below).
    expected = round_rows(x.float()) @ stored.decode().T
    torch.testing.assert_close(made.linear(x, weight).float(), expected, rtol=2e-2, atol=2e-2)


def test_rounded_rows_are_the_packages_but_for_ties() -> None:
    x = torch.randn(9, 128) * torch.tensor([1e-3, 1.0, 300.0])[torch.arange(9) % 3, None]
    x[4] = 0
    ours, theirs = round_rows(x), q8_0_tensor(x).decode()
    assert float((ours != theirs).float().mean()) < 0.01
    torch.testing.assert_close(ours, x, rtol=0, atol=float(x.abs().max()) / 200)


def test_a_product_in_pieces_is_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    from lluda.backends.executor import q8_weight

    weight, x, bias = Q8Weight.of(stored_matrix(50, 64)), torch.randn(3, 64), torch.randn(50)
    whole = weight.product(x, bias)
    monkeypatch.setattr(q8_weight, "_VALUES_AT_ONCE", 64 * 7)
    torch.testing.assert_close(weight.product(x, bias), whole)


def logits(path: Path, ids: tuple[int, ...], **options: str) -> torch.Tensor:
    step = load_decoder(ModelFiles.find(path), LoadOptions(**options))[0].start()
    return torch.cat([step(ids[:9]), *(step([one]) for one in ids[9:])]).float()


@pytest.mark.parametrize("raw", [TINY_QWEN3, MOE], ids=["dense", "moe"])
@pytest.mark.parametrize("plain", ["", "text/attention", "text/embed_tokens"])
def test_a_mixed_file_runs_as_the_float32_run_of_its_values(
    tmp_path: Path, backend: str, raw: dict, plain: str
) -> None:
    choice = TypeChoice("q8_0", {plain: "bf16"} if plain else {})
    quantize_model(checkpoint(tmp_path / "m", raw), tmp_path / "q.gguf", choice)
    ids = random_ids(512, 14, 0)
    exact = logits(tmp_path / "q.gguf", ids, dtype="f32")
    ours = logits(tmp_path / "q.gguf", ids, backend=backend)
    error, size = (ours - exact).abs().max(), exact.abs().max()
    assert error < 0.03 * size, f"{error} of {size}"


def test_what_is_held_how_is_reported(tmp_path: Path, backend: str) -> None:
    choice = TypeChoice("q8_0", {"text/embed_tokens": "bf16"})
    quantize_model(checkpoint(tmp_path / "m", TINY_QWEN3), tmp_path / "q.gguf", choice)
    files = ModelFiles.find(tmp_path / "q.gguf")
    _, report = load_network(files, LoadOptions(backend=backend))
    assert report.formats == {"BF16": 1, "Q8_0": 21}
    assert "matrices held as" in report.describe() and "21 Q8_0" in report.describe()
    stored = report.sizes["model.layers.0.mlp.up_proj.weight"]
    assert stored == 96 * 68
    _, decoded = load_network(files, LoadOptions(backend=backend, weights="bf16"))
    assert decoded.formats == {"BF16": 22}
    assert "21 decoded from Q8_0" in decoded.describe()
    plan = files.plan(LoadOptions())
    by_component = {row.component: row.nbytes for row in plan.weights}
    assert by_component["text / mlp"] == 3 * 3 * 96 * 68
    assert files.plan(LoadOptions(weights="bf16")).weight_bytes > plan.weight_bytes


def test_blocks_are_used_where_they_are_mapped(tmp_path: Path, backend: str) -> None:
    quantize_model(checkpoint(tmp_path / "m", TINY_QWEN3), tmp_path / "q.gguf", TypeChoice("q8_0"))
    _, report = load_network(ModelFiles.find(tmp_path / "q.gguf"), LoadOptions(backend=backend))
    assert report.converted == 0
