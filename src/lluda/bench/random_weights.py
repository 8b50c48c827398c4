"""Random weights of true shapes made where they are needed: no file, no copy on the host."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lluda.backends.backend import ComputeBackend
from lluda.backends.weight import Parameters, Weight
from lluda.bench.formats import BYTES_PER_WEIGHT, FORMATS
from lluda.config.model import ModelConfig
from lluda.convert.synth import distribution
from lluda.engine.loading.load_options import LoadOptions
from lluda.engine.loading.model_files import ModelFiles
from lluda.errors import OutOfMemory
from lluda.formats.format import BlockFormat
from lluda.formats.plain import BF16, plain_tensor
from lluda.formats.stored_tensor import StoredTensor
from lluda.models.build import all_parameters, shared_specs, text_parameters
from lluda.parameters import WHOLE, ParameterSpec, Share
from lluda.weights.checkpoint import ModelSource, read_generation_config
from lluda.weights.loader import LoadReport, Progress, Take

_LEAST_RESERVE, _LARGEST_RESERVE = 1 << 27, 2 << 30
"""Bytes that caches, activations and graphs take beside the weights: half as many as these, within limits."""


def random_parameters(
    specs: Iterable[ParameterSpec], backend: ComputeBackend, seed: int = 0, *, stored_as: BlockFormat = BF16
) -> Parameters:
    """Every tensor of ``specs`` on the backend's device, drawn as `lluda synth` draws them, though not the same values.
    Matrices and kernels are BF16 values, whatever the backend computes in; matrices whose rows are whole blocks of
    ``stored_as`` are given to it in that format."""
    drawn = _drawn(list(specs), backend.device, seed, stored_as)
    return Parameters({spec.name: backend.take(stored, spec.role)[0] for spec, stored in drawn})


def _drawn(
    specs: Sequence[ParameterSpec], device: torch.device | str, seed: int, stored_as: BlockFormat
) -> Iterator[tuple[ParameterSpec, StoredTensor]]:
    generator = torch.Generator(device).manual_seed(seed)
    tied = {spec.tied_to for spec in specs}
    for spec in specs:
        if spec.tied_to is None:
            mean, deviation = distribution(spec, is_tied=spec.name in tied)
            values = torch.empty(spec.shape, dtype=torch.bfloat16, device=device)
            values.normal_(mean, deviation, generator=generator)
            yield spec, _stored(spec, values, stored_as)


def _stored(spec: ParameterSpec, values: Tensor, stored_as: BlockFormat) -> StoredTensor:
    if spec.role not in ("matrix", "embedding") or spec.shape[1] % stored_as.block:
        return plain_tensor(values)
    data = stored_as.encode(values)
    assert data is not None, f"{spec.name}: its drawn values are not to be stored as {stored_as.name}"
    return StoredTensor(stored_as, spec.shape, data)


@dataclass(frozen=True, slots=True)
class RandomFiles(ModelFiles):
    """A folder with all of a checkpoint but its weights, which are drawn on the device that a model is loaded to."""

    stored_as: BlockFormat = BF16
    """Of matrices whose rows are whole blocks of it."""

    @classmethod
    def of_folder(cls, folder: Path, config: ModelConfig, stored_as: BlockFormat = BF16) -> RandomFiles:
        """``config`` is that of its config.json."""
        source = ModelSource(folder)
        return cls(source, config, read_generation_config(source), stored_as=stored_as)

    def load_tensors(
        self,
        specs: Sequence[ParameterSpec],
        options: LoadOptions,
        take: Take[Weight | Tensor],
        *,
        skip: tuple[str, ...] = (),  # noqa: ARG002 (there are no others)
        share: Share = WHOLE,
        progress: Progress | None = None,  # noqa: ARG002 (it is soon done)
    ) -> tuple[dict[str, Weight | Tensor], LoadReport]:
        """See `ModelFiles`; nothing is shared between ranks here."""
        assert share.ranks == 1, "a whole model of random weights is measured"
        drawn = _drawn(specs, options.device, 0, self.stored_as)
        placed = {spec.name: take(spec, stored)[0] for spec, stored in drawn}
        nbytes = sum(value.nbytes for value in placed.values())
        tied = tuple(spec.name for spec in specs if spec.tied_to)
        return placed, LoadReport(len(placed), nbytes, 0, tied, stored_twice=(), unexpected=(), suspicious=())


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
