"""Networks of true shapes with random weights made where they are needed: no file, no copy on the host."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lluda.backends.backend import ComputeBackend
from lluda.backends.blocks import Parameters, Weight
from lluda.backends.q8_0 import BLOCK, BLOCK_BYTES
from lluda.convert.synth import distribution
from lluda.parameters import ParameterSpec


def random_parameters(
    specs: Iterable[ParameterSpec], backend: ComputeBackend, seed: int = 0, *, q8_0: bool = False
) -> Parameters:
    """Every tensor of ``specs`` on the backend's device, drawn as `lluda synth` draws them (`weights.synth`), though
    not the same values. Matrices and kernels are BF16 values, whatever the backend computes in; ``q8_0`` quantises
    matrices whose rows are whole blocks."""
    generator = torch.Generator(backend.device).manual_seed(seed)
    listed = list(specs)
    tied = {spec.tied_to for spec in listed}
    return Parameters(
        {
            spec.name: _placed(spec, backend, generator, is_tied=spec.name in tied, q8_0=q8_0)
            for spec in listed
            if spec.tied_to is None
        }
    )


def _placed(
    spec: ParameterSpec, backend: ComputeBackend, generator: torch.Generator, *, is_tied: bool, q8_0: bool
) -> Weight | Tensor:
    mean, deviation = distribution(spec, is_tied=is_tied)
    values = torch.empty(spec.shape, dtype=torch.bfloat16, device=backend.device)
    values.normal_(mean, deviation, generator=generator)
    if spec.role in ("matrix", "embedding"):
        blocks = q8_0_blocks(values) if q8_0 and spec.shape[1] % BLOCK == 0 else None
        quantised = backend.q8_0_matrix(blocks) if blocks is not None else None
        return quantised or backend.matrix(values)[0]
    return backend.kernel(values) if spec.role == "kernel" else backend.vector(values)


def q8_0_blocks(values: Tensor) -> Tensor:
    """A matrix as Q8_0 blocks (uint8 ``[rows, columns / 32 * 34]``), as `weights.q8_0` but where it lies, and for drawn
    values only: none so small or large that a scale is none of float16's."""
    blocks = values.float().view(len(values), -1, BLOCK)
    scales = (blocks.abs().amax(-1, keepdim=True) / 127).clamp_min_(1e-30)
    stored = torch.empty((*blocks.shape[:2], BLOCK_BYTES), dtype=torch.uint8, device=values.device)
    stored[..., :2] = scales.half().view(torch.uint8)
    stored[..., 2:] = (blocks / scales).round_().to(torch.int8).view(torch.uint8)
    return stored.flatten(1)
