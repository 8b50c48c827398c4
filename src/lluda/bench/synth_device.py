"""Networks of true shapes with random weights made where they are needed: no file, no copy on the host."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lluda.backends.base import ComputeBackend
from lluda.backends.blocks import Parameters, Weight
from lluda.parameters import ParameterSpec
from lluda.weights.synth import distribution


def random_parameters(specs: Iterable[ParameterSpec], backend: ComputeBackend, seed: int = 0) -> Parameters:
    """Every tensor of ``specs`` on the backend's device, drawn as `lluda synth` draws them (`weights.synth`), though
    not the same values. Matrices and kernels are BF16 values, whatever the backend computes in."""
    generator = torch.Generator(backend.device).manual_seed(seed)
    listed = list(specs)
    tied = {spec.tied_to for spec in listed}
    return Parameters(
        {
            spec.name: _placed(spec, backend, generator, is_tied=spec.name in tied)
            for spec in listed
            if spec.tied_to is None
        }
    )


def _placed(
    spec: ParameterSpec, backend: ComputeBackend, generator: torch.Generator, *, is_tied: bool
) -> Weight | Tensor:
    mean, deviation = distribution(spec, is_tied=is_tied)
    values = torch.empty(spec.shape, dtype=torch.bfloat16, device=backend.device)
    values.normal_(mean, deviation, generator=generator)
    if spec.role in ("matrix", "embedding"):
        return backend.matrix(values)[0]
    return backend.kernel(values) if spec.role == "kernel" else backend.vector(values)
