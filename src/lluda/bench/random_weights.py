"""Networks of true shapes with random weights made where they are needed: no file, no copy on the host."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lluda.backends.backend import ComputeBackend
from lluda.backends.blocks import Parameters, Weight
from lluda.convert.synth import distribution
from lluda.formats.plain import plain_tensor
from lluda.formats.q8_0 import BLOCK, Q8_0
from lluda.formats.stored_tensor import StoredTensor
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
    quantised = None
    if q8_0 and spec.role in ("matrix", "embedding") and spec.shape[1] % BLOCK == 0:
        quantised = Q8_0.encode(values)
    stored = plain_tensor(values) if quantised is None else StoredTensor(Q8_0, spec.shape, quantised)
    return backend.take(stored, spec.role)[0]
