"""Models that several processes of this machine share, for tests."""

from __future__ import annotations

import json
from contextlib import contextmanager

from safetensors.torch import save_file

from lluda.config.model import ModelConfig
from lluda.engine.loading.load_options import LoadOptions
from lluda.engine.loading.loading import load_network, make_runner
from lluda.engine.loading.model_files import ModelFiles
from lluda.engine.parallel.leader import Leader
from lluda.engine.parallel.setup import CheckpointSetup
from lluda.models.build import all_parameters
from lluda.parameters import Share
from tests.models.omni_reference import random_parameters


def folder_of(raw, path):
    """A checkpoint of ``raw``'s shapes, float32, with random values."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps(raw))
    specs = [spec for spec in all_parameters(ModelConfig.from_hf(raw)) if not spec.tied_to]
    save_file(random_parameters(specs), path / "model.safetensors", metadata={"format": "pt"})
    return path


def single(folder, **options):
    """A runner of the whole model in this process."""
    files, chosen = ModelFiles.find(folder), LoadOptions(dtype="f32", threads=1, **options)
    return make_runner(files, chosen, load_network(files, chosen)[0])


@contextmanager
def shared(folder, ranks, **options):
    """A runner of the first of ``ranks``, and its leader."""
    files, chosen = ModelFiles.find(folder), LoadOptions(dtype="f32", threads=1, tensor_parallel=ranks, **options)
    leader = Leader(CheckpointSetup(str(folder), chosen), ranks)
    try:
        network, _ = load_network(files, chosen.on_rank(), share=Share(0, ranks), join=leader.join)
        yield make_runner(files, chosen, network, leader), leader
    finally:
        leader.close()
