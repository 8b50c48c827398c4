"""Random weights of true shapes made where they are needed: no file, no copy on the host."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lluda.backends.backend import ComputeBackend
from lluda.backends.weight import Parameters, Weight
from lluda.bench.formats import BYTES_PER_WEIGHT, FORMATS
from lluda.config.model import ModelConfig
from lluda.convert.synth import distribution
from lluda.errors import OutOfMemory
from lluda.formats.format import BlockFormat
from lluda.formats.plain import BF16, plain_tensor
from lluda.formats.stored_tensor import StoredTensor
from lluda.models.build import all_parameters, shared_specs, text_parameters
from lluda.parameters import ParameterSpec, Share

_LEAST_RESERVE, _LARGEST_RESERVE = 1 << 27, 2 << 30
"""Bytes that caches, activations and graphs take beside the weights: half as many as these, within limits."""


def random_parameters(
    specs: Iterable[ParameterSpec], backend: ComputeBackend, seed: int = 0, *, stored_as: BlockFormat = BF16
) -> Parameters:
    """Every tensor of ``specs`` on the backend's device, drawn as `lluda synth` draws them, though not the same values.
    Matrices and kernels are BF16 values, whatever the backend computes in; matrices whose rows are whole blocks of
    ``stored_as`` are given to it in that format."""
    generator = torch.Generator(backend.device).manual_seed(seed)
    listed = list(specs)
    tied = {spec.tied_to for spec in listed}
    return Parameters(
        {
            spec.name: _placed(spec, backend, generator, is_tied=spec.name in tied, stored_as=stored_as)
            for spec in listed
            if spec.tied_to is None
        }
    )


def _placed(
    spec: ParameterSpec, backend: ComputeBackend, generator: torch.Generator, *, is_tied: bool, stored_as: BlockFormat
) -> Weight | Tensor:
    mean, deviation = distribution(spec, is_tied=is_tied)
    values = torch.empty(spec.shape, dtype=torch.bfloat16, device=backend.device)
    values.normal_(mean, deviation, generator=generator)
    stored = plain_tensor(values)
    if spec.role in ("matrix", "embedding") and spec.shape[1] % stored_as.block == 0:
        data = stored_as.encode(values)
        assert data is not None, f"{spec.name}: its drawn values are not to be stored as {stored_as.name}"
        stored = StoredTensor(stored_as, spec.shape, data)
    return backend.take(stored, spec.role)[0]


def require_memory(
    config: ModelConfig, format_name: str, *, speech: bool, device: str, free: int, ranks: int = 1
) -> None:
    """OutOfMemory if the network (with ``speech``: with what speaks) does not fit ``free`` bytes of ``device``: by how
    much, and what would fit."""

    def needed(name: str, *, speech: bool) -> float:
        specs = shared_specs(config, all_parameters(config) if speech else text_parameters(config), Share(0, ranks))
        weights = BYTES_PER_WEIGHT[name] * sum(spec.elements for spec in specs if spec.tied_to is None)
        return weights + min(_LARGEST_RESERVE, _LEAST_RESERVE + weights / 2)

    least = needed(format_name, speech=speech)
    if least <= free:
        return
    others = dict.fromkeys((name, spoken) for name in FORMATS for spoken in (speech, False))
    fitting = next((other for other in others if needed(other[0], speech=other[1]) <= free), None)
    remedy = "take a smaller config, or a device with more memory"
    if fitting:
        without = " without speech (--no-speech)" if speech and not fitting[1] else ""
        remedy = f"{fitting[0]} weights{without} fit"
    raise OutOfMemory(
        f"the network needs {least / 1e9:.1f} GB on {device} but {free / 1e9:.1f} GB are free, "
        f"{(least - free) / 1e9:.1f} GB too few; {remedy}"
    )
