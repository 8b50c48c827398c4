"""Convolutions, SnakeBeta and the shared expert of the cpu backend, held against their definitions in float64."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from lluda.backends.backend import ComputeBackend, Precision
from lluda.backends.blocks import MixtureBlock, Norm, Projection, ResidualUnit, SharedExpert, SwiGLU
from lluda.backends.cpu.backend import CpuBackend
from lluda.backends.reference.backend import ReferenceBackend
from lluda.models.conv import ConvState
from tests.backends.test_cpu import available_isas
from tests.conftest import taken

CPU = torch.device("cpu")
PACKED = pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
EVERY_ISA = pytest.mark.parametrize("isa", available_isas())

# rows, channels, out, taps, dilation
CONVOLUTIONS = {
    "one row": (1, 64, 48, 7, 1),
    "few rows, dilated": (5, 40, 33, 7, 9),
    "one tap": (70, 96, 96, 1, 1),
    "by features": (37, 128, 100, 7, 3),
    "by rows": (700, 32, 50, 7, 9),
    "odd channels": (300, 11, 7, 3, 2),
    "a transposed one": (33, 64, 5 * 32, 2, 1),
}


def native(isa: str, packed: bool = False) -> CpuBackend:
    return CpuBackend(CPU, Precision.of("bf16"), packed=packed, isa=isa)


def reference(dtype: str) -> ReferenceBackend:
    return ReferenceBackend(CPU, Precision.of(dtype))


def error(found: Tensor, truth: Tensor) -> float:
    return float((found.double() - truth).norm() / truth.norm())


def convolved(backend: ComputeBackend, shape: tuple[int, int, int, int, int]) -> Tensor:
    rows, channels, out, taps, dilation = shape
    random = torch.Generator().manual_seed(1)
    weight = (torch.randn(out, taps * channels, generator=random) * (taps * channels) ** -0.5).bfloat16()
    x = torch.randn(rows + (taps - 1) * dilation, channels, generator=random).bfloat16()
    bias = torch.randn(out, generator=random)
    compute = backend.precision.compute
    matrix, vector = taken(backend, weight), taken(backend, bias, "bias")
    return backend.conv1d([x.to(compute)], matrix, vector, taps=taps, dilation=dilation)[0]


@PACKED
@EVERY_ISA
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str, isa: str, packed: bool) -> None:
    truth = convolved(reference("f64"), CONVOLUTIONS[name])
    assert error(convolved(native(isa, packed), CONVOLUTIONS[name]), truth) <= error(truth.bfloat16(), truth) + 1e-4


@EVERY_ISA
def test_a_convolution_of_no_rows_is_empty(isa: str) -> None:
    backend = native(isa)
    weight = taken(backend, torch.ones(3, 14).bfloat16())
    out = backend.conv1d([torch.ones(6, 2).bfloat16()], weight, torch.zeros(3), taps=7, dilation=1)
    assert [rows.shape for rows in out] == [(0, 3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 16, 37, 768])
@EVERY_ISA
def test_snake_beta(isa: str, channels: int, dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(2)
    # Angles up to some thousands: far more than any checkpoint makes.
    x = (torch.randn(50, channels, generator=random) * torch.logspace(-3, 3, 50)[:, None]).to(dtype)
    frequency, amplitude = torch.rand(channels, generator=random) * 4, torch.rand(channels, generator=random) * 2
    truth = reference("f64").snake_beta(x.double(), frequency.double(), amplitude.double())
    found = native(isa).snake_beta(x, frequency, amplitude)
    # The angle itself is a float32; then one rounding to BF16.
    angle = (frequency * x.float()).double().abs()
    allowed = truth.abs() * 2**-8 + amplitude.double() * (angle * 2**-23 + 1e-6)
    assert bool(((found.double() - truth).abs() <= allowed).all())


@EVERY_ISA
def test_snake_beta_of_what_is_not_finite(isa: str) -> None:
    x = torch.tensor([[float("inf"), float("nan"), 1e30, 0.0]]).T.contiguous()
    found = native(isa).snake_beta(x, torch.ones(1), torch.ones(1)).flatten()
    assert not found[0].isfinite()
    assert found[1].isnan()
    assert found[2] == torch.tensor(1e30).bfloat16()
    assert found[3] == 0


def mixed(backend: ComputeBackend, rows: int) -> Tensor:
    random = torch.Generator().manual_seed(5)
    hidden, inner, experts = 64, 48, 6

    def matrix(out: int, into: int) -> object:
        return taken(backend, (torch.randn(out, into, generator=random) * into**-0.5).bfloat16())

    def swiglu(width: int) -> SwiGLU:
        return SwiGLU(matrix(width, hidden), matrix(width, hidden), matrix(hidden, width))  # type: ignore[arg-type]

    block = MixtureBlock(
        norm=Norm(taken(backend, torch.rand(hidden, generator=random) + 0.5, "bias"), 1e-6),
        router=taken(backend, torch.randn(experts, hidden, generator=random), "bias"),
        experts=[swiglu(inner) for _ in range(experts)],
        top_k=2,
        normalise=True,
        shared=SharedExpert(swiglu(80), taken(backend, torch.randn(1, hidden, generator=random) * 0.2, "bias")),
    )
    x = torch.randn(rows, hidden, generator=random)
    return backend.mixture_block(x.clone().to(backend.precision.residual), block).double() - x.double()


@PACKED
@EVERY_ISA
@pytest.mark.parametrize("rows", [1, 3, 16, 40])
def test_a_mixture_with_a_shared_expert(rows: int, isa: str, packed: bool) -> None:
    truth = mixed(reference("f64"), rows)
    assert error(mixed(native(isa, packed), rows), truth) <= 1.1 * error(mixed(reference("bf16"), rows), truth)


def test_own_threads_are_given_back() -> None:
    torch.set_num_threads(2)
    backend = native("auto")
    with backend.single_threaded_torch():
        assert torch.get_num_threads() == 1
        with backend.single_threaded_torch():
            pass
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def test_own_threads_are_each_thread_s_own_matter() -> None:
    torch.set_num_threads(2)
    backend = native("auto")

    def beside() -> list[int]:
        torch.set_num_threads(2)
        counts = []
        with backend.single_threaded_torch():
            counts.append(torch.get_num_threads())
        return [*counts, torch.get_num_threads()]

    with ThreadPoolExecutor(1) as pool, backend.single_threaded_torch():
        assert pool.submit(beside).result() == [1, 2]
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


# rows, channels, taps, dilation
UNITS = {
    "one row": (1, 32, 7, 1),
    "by features": (40, 96, 7, 9),
    "by tiles": (700, 96, 7, 3),
    "wide, by tiles": (300, 256, 7, 9),
    "odd channels, as it is defined": (50, 11, 3, 2),
}


def spoken(backend: ComputeBackend, shape: tuple[int, int, int, int], at_once: int) -> Tensor:
    """A residual unit's rows, made ``at_once`` at a time as one stream."""
    rows, channels, taps, dilation = shape
    random = torch.Generator().manual_seed(3)

    def vector() -> Tensor:
        return taken(backend, torch.randn(channels, generator=random), "bias")

    def conv(width: int) -> Projection:
        weight = torch.randn(channels, width, generator=random) * width**-0.5
        return Projection(taken(backend, weight.bfloat16()), vector())

    acts = (vector(), vector()), (vector(), vector())
    unit = ResidualUnit(acts[0], conv(taps * channels), acts[1], conv(channels), taps, dilation)
    x = torch.randn(rows, channels, generator=random).to(backend.precision.residual)
    kept = ConvState()
    parts = [backend.residual_unit(part.clone(), [len(part)], unit, [kept]) for part in torch.split(x, at_once)]
    return torch.cat(parts)


@PACKED
@EVERY_ISA
@pytest.mark.parametrize("name", UNITS)
def test_residual_units(name: str, isa: str, packed: bool) -> None:
    shape = UNITS[name]
    truth = spoken(reference("f64"), shape, shape[0])
    whole = spoken(native(isa, packed), shape, shape[0])
    assert error(whole, truth) <= error(spoken(reference("bf16"), shape, shape[0]), truth) + 1e-4
    if shape[1] % 2 == 0:
        assert torch.equal(spoken(native(isa, packed), shape, 7), whole), "the pieces of a stream are not the whole"
