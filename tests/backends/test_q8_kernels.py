"""The cpu backend's Q8_0 kernels against what the reference backend defines, exact and with rounded rows: products, all
kinds of blocks, whole small models, one format or several in a block, 1 to many rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lluda.backends.backend import ComputeBackend, Precision
from lluda.backends.blocks import Norm
from lluda.backends.cpu.backend import CpuBackend
from lluda.backends.reference.backend import ReferenceBackend
from lluda.backends.weight import Weight
from lluda.engine.kv_cache import CacheOptions
from lluda.formats.q8_0 import Q8_0, round_rows
from lluda.formats.stored_tensor import StoredTensor
from tests.backends.test_cpu import Runner, available_isas, ids
from tests.backends.test_encoder_block import Shape, branch
from tests.backends.test_speech_kernels import convolved, mixed
from tests.conftest import TINY_MOE, TINY_QWEN3
from tests.formats.stored_by_hand import q8_0_tensor

CPU = torch.device("cpu")
MODELS = {"dense": TINY_QWEN3, "moe": TINY_MOE | {"moe_intermediate_size": 64}}
EVERY_ISA = pytest.mark.parametrize("isa", available_isas())
ROUNDED = pytest.mark.parametrize("rows_rounded", [False, True], ids=["exact", "rounded"])
MIXED = pytest.mark.parametrize("mixed_formats", [False, True], ids=["q8", "mixed"])


class Quantising:
    """What a backend's ``take`` is replaced by: matrices that can be Q8_0 are; ``mixed``: but for each third."""

    def __init__(self, backend: ComputeBackend, mixed_formats: bool) -> None:
        self.mixed, self.count, self.take = mixed_formats, 0, backend.take

    def __call__(self, stored: StoredTensor, role: str) -> tuple[Weight | Tensor, bool]:
        if role not in ("matrix", "embedding") or not stored.format.is_plain:
            return self.take(stored, role)
        self.count += 1
        as_it_is = stored.shape[1] % 32 or (self.mixed and self.count % 3 == 0)
        return self.take(stored if as_it_is else q8_0_tensor(stored.decode()), role)


def quantising(backend: ComputeBackend, mixed_formats: bool = False) -> ComputeBackend:
    backend.take = Quantising(backend, mixed_formats)  # type: ignore[method-assign]
    return backend


def native(isa: str, rows_rounded: bool = False, mixed_formats: bool = False) -> ComputeBackend:
    packed = mixed_formats and isa != "portable"
    made = CpuBackend(CPU, Precision.of("bf16"), packed=packed, q8_0_rows=rows_rounded, isa=isa)
    return quantising(made, mixed_formats)


def reference(dtype: str, rows_rounded: bool = False, mixed_formats: bool = False) -> ComputeBackend:
    return quantising(ReferenceBackend(CPU, Precision.of(dtype), q8_0_rows=rows_rounded), mixed_formats)


def error(found: Tensor, truth: Tensor) -> float:
    return float((found.double() - truth).norm() / truth.norm())


@ROUNDED
@EVERY_ISA
@pytest.mark.parametrize("columns", [32, 96, 288, 1056])
def test_heads_are_exact_but_for_the_order_of_sums(columns: int, isa: str, rows_rounded: bool) -> None:
    # A head's outputs are float32, so that they show every digit of a product.
    backend, stored = native(isa, rows_rounded), q8_0_tensor(torch.randn(51, columns))
    weight, values = backend.take(stored, "matrix")[0], stored.decode().double()
    norm = Norm(torch.ones(columns), 1e-6)
    for rows in (*range(1, 18), 40, 130):
        x = torch.randn(rows, columns)
        # The reference's rows are rounded as the kernels' are, but for a last digit of the norm now and then.
        normed = backend.rms_norm(x, norm).float()
        expected = (round_rows(normed) if rows_rounded else normed).double() @ values.T
        difference = (backend.head(x, norm, weight).double() - expected).abs()
        assert float(difference.median()) <= 2e-6 * float(expected.abs().max())
        assert error(backend.head(x, norm, weight), expected) <= 5e-3


@ROUNDED
@EVERY_ISA
def test_products_are_those_of_the_definition(isa: str, rows_rounded: bool) -> None:
    ours, defined = native(isa, rows_rounded), reference("bf16", rows_rounded)
    stored, bias = q8_0_tensor(torch.randn(70, 160)), torch.randn(70)
    for rows in (1, 2, 5, 8, 16, 17, 40):
        x = torch.randn(rows, 160).bfloat16()
        found, expected = (
            backend.linear(x, backend.take(stored, "matrix")[0], bias).float() for backend in (ours, defined)
        )
        # Both are rounded to BF16 once.
        torch.testing.assert_close(found, expected, rtol=2**-7, atol=1e-4)


@ROUNDED
@EVERY_ISA
@pytest.mark.parametrize("shape", [(5, 32, 33, 7, 9), (70, 96, 96, 1, 1), (37, 128, 100, 7, 3), (700, 32, 50, 7, 9)])
def test_convolutions(shape: tuple[int, int, int, int, int], isa: str, rows_rounded: bool) -> None:
    truth = convolved(reference("f32", rows_rounded), shape).double()
    assert error(convolved(native(isa, rows_rounded), shape), truth) <= error(truth.bfloat16(), truth) + 1e-3


@MIXED
@ROUNDED
@EVERY_ISA
@pytest.mark.parametrize("rows", [1, 3, 16, 40])
def test_mixtures_with_a_shared_expert(rows: int, isa: str, rows_rounded: bool, mixed_formats: bool) -> None:
    truth = mixed(reference("f64", mixed_formats=mixed_formats), rows)
    defined = mixed(reference("bf16", rows_rounded, mixed_formats), rows)
    assert error(mixed(native(isa, rows_rounded, mixed_formats), rows), truth) <= 1.1 * error(defined, truth)


@MIXED
@ROUNDED
@EVERY_ISA
@pytest.mark.parametrize("fused", [False, True], ids=["apart", "fused"])
def test_encoder_layers(fused: bool, isa: str, rows_rounded: bool, mixed_formats: bool) -> None:
    shape = Shape(64, 2, 32, 96, (104, 26), fused=fused, rotary=fused)
    truth = branch(shape, reference("f64", mixed_formats=mixed_formats))
    defined = branch(shape, reference("bf16", rows_rounded, mixed_formats))
    assert error(branch(shape, native(isa, rows_rounded, mixed_formats)), truth) <= 1.1 * error(defined, truth)


@MIXED
@ROUNDED
@EVERY_ISA
@pytest.mark.parametrize("name", MODELS)
def test_models_are_as_near_to_float64_as_the_reference(
    name: str, isa: str, rows_rounded: bool, mixed_formats: bool
) -> None:
    runners = [
        Runner(MODELS[name], backend)
        for backend in (
            native(isa, rows_rounded, mixed_formats),
            reference("bf16", rows_rounded, mixed_formats),
            reference("f64", mixed_formats=mixed_formats),
        )
    ]
    runners[2].options = CacheOptions(256, dtype="f64")
    caches = [runner.cache() for runner in runners]
    steps = [ids(rows, seed=rows) for rows in (1, 2, 3, 16, 1, 40, 17, 1)]
    ours, defined, truth = (
        torch.cat([runner.run([step], [cache]) for step in steps]).double()
        for runner, cache in zip(runners, caches, strict=True)
    )
    assert error(ours, truth) <= 1.1 * error(defined, truth)


@ROUNDED
def test_steps_of_a_prompt_equal_the_prompt(rows_rounded: bool) -> None:
    runner = Runner(TINY_QWEN3, native("auto", rows_rounded))
    whole, apart = runner.cache(), runner.cache()
    prompt = ids(40)
    expected = runner.run([prompt], [whole])
    found = torch.cat([runner.run([part], [apart]) for part in prompt.split(1)])
    # A row's rounding may fall the other way by the last digit of a sum (docs/numerics.md).
    assert error(found, expected.double()) <= (0.03 if rows_rounded else 0.01)


def test_what_runs_is_told() -> None:
    exact, with_rows = native("auto"), native("auto", rows_rounded=True)
    for backend in (exact, with_rows):
        assert "Q8_0" not in backend.describe()
        weight, _ = backend.take(q8_0_tensor(torch.randn(3, 64)), "matrix")
        assert (weight.format, weight.nbytes) == ("Q8_0", 3 * 68)
    assert "Q8_0 (exact)" in exact.describe()
    assert "rows rounded)" in with_rows.describe()


def test_blocks_are_read_where_they_lie() -> None:
    whole = q8_0_tensor(torch.randn(6, 64))
    last = StoredTensor(Q8_0, (4, 64), whole.data[2 * 68 :])
    weight, reads_stored = native("auto").take(last, "matrix")
    assert reads_stored
    assert weight.memory.data_ptr() == whole.data.data_ptr() + 2 * 68  # type: ignore[attr-defined]


def test_values_that_are_too_small_for_a_scale_round_to_zero() -> None:
    # And not to infinity times zero.
    x = torch.full((1, 64), 1e-38)
    x[0, 32:] = torch.linspace(-1, 1, 32)
    assert bool((round_rows(x)[0, :32] == 0).all())
    assert bool(round_rows(x).isfinite().all())
