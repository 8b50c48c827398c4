"""A bidirectional encoder layer on the cpu backend, held against its definition in float64."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from lluda.backends.backend import ComputeBackend, Precision
from lluda.backends.blocks import EncoderBlock, LayerNorm, Projection
from lluda.backends.cpu.backend import CpuBackend
from lluda.backends.reference.backend import ReferenceBackend
from lluda.errors import NativeLibraryError
from tests.backends.test_cpu import available_isas
from tests.conftest import taken

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Shape:
    hidden: int
    heads: int
    head_dim: int
    intermediate: int
    lengths: tuple[int, ...]
    fused: bool = False
    tanh: bool = False
    rotary: bool = False


SHAPES = {
    "audio heads": Shape(128, 2, 64, 256, (104, 26)),
    "vision heads": Shape(144, 2, 72, 200, (64, 130), fused=True, tanh=True, rotary=True),
    "one row": Shape(64, 4, 16, 96, (1,)),
    "single rows": Shape(64, 4, 16, 96, (1, 1, 1), tanh=True),
    "odd sizes": Shape(75, 3, 10, 101, (17, 3, 65, 2), rotary=True),
    "more rows than a part": Shape(48, 2, 24, 64, (520, 5, 60), fused=True, rotary=True),
}


def random_block(shape: Shape, backend: ComputeBackend) -> EncoderBlock:
    random = torch.Generator().manual_seed(3)

    def projection(out: int, inputs: int) -> tuple[Tensor, Tensor]:
        weight = torch.randn(out, inputs, generator=random) * inputs**-0.5
        return weight.bfloat16(), torch.randn(out, generator=random) * 0.2

    def placed(part: tuple[Tensor, Tensor]) -> Projection:
        return Projection(taken(backend, part[0]), taken(backend, part[1], "bias"))

    def norm() -> LayerNorm:
        weight, bias = torch.rand(shape.hidden, generator=random) + 0.5, torch.randn(shape.hidden, generator=random)
        return LayerNorm(taken(backend, weight, "bias"), taken(backend, bias * 0.2, "bias"), 1e-5)

    width = shape.heads * shape.head_dim
    qkv = [projection(width, shape.hidden) for _ in range(3)]
    if shape.fused:
        qkv = [(torch.cat([weight for weight, _ in qkv]), torch.cat([bias for _, bias in qkv]))]
    return EncoderBlock(
        norm1=norm(),
        qkv=tuple(map(placed, qkv)),
        out=placed(projection(shape.hidden, width)),
        norm2=norm(),
        fc1=placed(projection(shape.intermediate, shape.hidden)),
        fc2=placed(projection(shape.hidden, shape.intermediate)),
        heads=shape.heads,
        tanh=shape.tanh,
    )


def branch(shape: Shape, backend: ComputeBackend) -> Tensor:
    """What the layer adds to its rows, in float64."""
    rows = sum(shape.lengths)
    x = torch.randn(rows, shape.hidden, generator=torch.Generator().manual_seed(4)) * 2
    rotary = None
    if shape.rotary:
        angles = torch.arange(rows * shape.head_dim // 2).view(rows, -1) * 0.37
        rotary = angles.cos().to(backend.precision.rotary), angles.sin().to(backend.precision.rotary)
    taken = x.clone().to(backend.precision.residual)
    return backend.encoder_block(taken, random_block(shape, backend), shape.lengths, rotary).double() - x.double()


def error(found: Tensor, truth: Tensor) -> float:
    return float((found - truth).norm() / truth.norm())


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("name", SHAPES)
def test_it_is_as_near_to_float64_as_the_reference_in_bf16(name: str, isa: str, packed: bool) -> None:
    shape = SHAPES[name]
    try:
        native = CpuBackend(CPU, Precision.of("bf16"), packed=packed, isa=isa)
    except NativeLibraryError as failure:
        pytest.skip(f"the native library is not built: {failure}")
    truth = branch(shape, ReferenceBackend(CPU, Precision.of("f64")))
    reference = branch(shape, ReferenceBackend(CPU, Precision.of("bf16")))
    assert error(branch(shape, native), truth) <= error(reference, truth)


@pytest.mark.parametrize("isa", available_isas())
def test_rows_of_one_run_do_not_see_another(isa: str) -> None:
    both = Shape(64, 4, 16, 96, (40, 50))
    native = CpuBackend(CPU, Precision.of("bf16"), isa=isa)
    whole = branch(both, native)[:40]
    alone = branch(Shape(64, 4, 16, 96, (40,)), native)
    assert torch.equal(whole, alone)
