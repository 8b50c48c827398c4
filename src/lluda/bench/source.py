"""What lluda is measured with: a checkpoint, or a config's network with random weights made on the device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from lluda.backends import select_backend
from lluda.backends.backend import ComputeBackend
from lluda.backends.weight import Parameters
from lluda.bench.formats import held_format, load_options
from lluda.bench.process.job import Job
from lluda.bench.random_weights import random_parameters
from lluda.config.model import ModelConfig, resolve_dtype
from lluda.engine.kv_cache import CacheOptions
from lluda.engine.loading.load_options import LoadOptions
from lluda.engine.loading.loading import Join, load_network, load_parameters, make_runner
from lluda.engine.loading.model_files import ModelFiles
from lluda.engine.parallel.leader import Leader
from lluda.engine.parallel.limits import require_shareable
from lluda.engine.parallel.setup import CheckpointSetup
from lluda.engine.runner import Runner
from lluda.files.json_file import read_json_object
from lluda.formats.format import BlockFormat
from lluda.formats.plain import BF16
from lluda.formats.q8_0 import Q8_0
from lluda.models.build import build_text_model, decoder_and_head, shared_specs, text_parameters
from lluda.parameters import ParameterSpec, Share
from lluda.weights.checkpoint import open_checkpoint


class Source(Protocol):
    """A model's ``config``; the ``format`` of its weights as rows name it; the ``dtype`` of its KV caches."""

    config: ModelConfig
    format: str
    dtype: str
    generation_config: Mapping[str, Any]

    def backend(self, component: str, /) -> ComputeBackend:
        """What runs a component."""

    def parameters(self, specs: Iterable[ParameterSpec]) -> Parameters:
        """These tensors alone."""

    def runner(self, positions: int) -> tuple[Runner, Mapping[str, int]]:
        """What answers in text, with room for ``positions``, and the bytes that each of its tensors takes. It needs no
        tokenizer: the bench feeds ids."""


def open_source(job: Job) -> Source:
    """As the job says."""
    return RandomSource(job) if job.random else CheckpointSource(job)


class CheckpointSource:
    """A folder or .gguf file, loaded as `lluda.load` loads it."""

    def __init__(self, job: Job) -> None:
        self._options = _options(job)
        self._files = ModelFiles.find(job.model, allow_unknown_config=job.allow_unknown_config)
        self.config, self.generation_config = self._files.config, self._files.generation_config
        stored = {entry.dtype for entry in open_checkpoint(self._files.path).entries.values()}
        self.format = held_format(job.format, job.model, stored)
        self._dtype = resolve_dtype(self._options.dtype, self.config.dtype)
        self.dtype: str = self._dtype
        self._backends = self._files.backends(self._options, self._dtype)

    def backend(self, component: str) -> ComputeBackend:
        """See ``Source``."""
        return self._backends.of(component)

    def parameters(self, specs: Iterable[ParameterSpec]) -> Parameters:
        """See ``Source``."""
        return load_parameters(self._files, self._options, list(specs))[0]

    def runner(self, positions: int) -> tuple[Runner, Mapping[str, int]]:
        """See ``Source``."""
        options, leader = replace(self._options, max_context=positions), None
        share = Share(0, options.tensor_parallel)
        if share.ranks > 1:
            require_shareable(self._files, options)
            leader = Leader(CheckpointSetup(str(self._files.path), options), share.ranks)
        options = options.on_rank()
        network, report = load_network(self._files, options, share=share, join=leader.join if leader else None)
        return make_runner(self._files, options, network, leader), report.sizes


class RandomSource:
    """A folder's config.json."""

    generation_config: Mapping[str, Any] = {}

    def __init__(self, job: Job) -> None:
        options = _options(job).on_rank()
        torch.set_num_threads(job.threads)
        self._job = job
        self.config = read_random_config(Path(job.model), allow_unknown=job.allow_unknown_config)
        self.format = job.format
        dtype = resolve_dtype(options.dtype, self.config.dtype)
        self.dtype: str = dtype
        self._backend = select_backend(random_backend(job), options.device, dtype, options.weights, options.activations)
        self._prefill_rows = options.prefill_rows

    def backend(self, _component: str) -> ComputeBackend:
        """See ``Source``."""
        return self._backend

    def parameters(self, specs: Iterable[ParameterSpec]) -> Parameters:
        """See ``Source``."""
        return random_parameters(specs, self._backend, stored_as=random_format(self._job))

    def runner(self, positions: int) -> tuple[Runner, Mapping[str, int]]:
        """See ``Source``."""
        ranks = self._job.tensor_parallel
        leader = Leader(RandomSetup(self._job, positions), ranks) if ranks > 1 else None
        return self.rank_runner(positions, Share(0, ranks), leader.join if leader else None, leader)

    def rank_runner(
        self, positions: int, share: Share, join: Join | None, leader: Leader | None = None
    ) -> tuple[Runner, Mapping[str, int]]:
        """What ``share`` of a model steps, and what its tensors take. All ranks draw the same numbers."""
        specs = text_parameters(self.config) if share.rank == 0 else decoder_and_head(self.config)
        parameters = self.parameters(shared_specs(self.config, specs, share))
        sizes = {name: value.nbytes for name, value in parameters.values.items()}
        group = join(self._backend, sum(sizes.values())) if join else None
        model = build_text_model(self.config, parameters, self.backend, group)
        cache = CacheOptions(positions, "preallocated", self.dtype)
        return Runner(model, cache, self._prefill_rows, leader=leader), sizes


@dataclass(frozen=True, slots=True)
class RandomSetup:
    """See `lluda.engine.parallel.setup.Setup`: a share of the network of a job's config.json, with random weights."""

    job: Job
    positions: int

    @property
    def device(self) -> str:
        """See `Setup`."""
        return self.job.device

    def runner(self, share: Share, join: Join) -> Runner:
        """See `Setup`."""
        return RandomSource(self.job).rank_runner(self.positions, share, join)[0]


def random_backend(job: Job) -> str:
    """On a GPU the cuda backend, if no other is named: what is measured there is not to be another for want of it."""
    return "cuda" if job.device.startswith("cuda") and job.backend == "auto" else job.backend


def random_format(job: Job) -> BlockFormat:
    """What random matrices are stored as."""
    return Q8_0 if job.format.startswith("Q8_0") else BF16


def read_random_config(folder: Path, *, allow_unknown: bool = False) -> ModelConfig:
    """The config.json of a folder."""
    path = folder / "config.json"
    return ModelConfig.from_hf(read_json_object(path), str(path), allow_unknown=allow_unknown)


def _options(job: Job) -> LoadOptions:
    return LoadOptions(
        device=job.device,
        backend=job.backend,
        threads=job.threads,
        tensor_parallel=job.tensor_parallel,
        **load_options(job.format),
    )
