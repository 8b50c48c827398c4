"""Which models and options several ranks can share: refused before any process is started."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lluda.engine.loading.placement import EXPERTS, read_placement
from lluda.engine.parallel.ranks import ranks_here
from lluda.errors import InvalidRequest
from lluda.models.build import decoder_and_head
from lluda.parameters import Share

if TYPE_CHECKING:
    from lluda.engine.loading.load_options import LoadOptions
    from lluda.engine.loading.model_files import ModelFiles


def require_shareable(files: ModelFiles, options: LoadOptions) -> None:
    """InvalidRequest: ``options.tensor_parallel`` ranks cannot share this model as the other options say."""
    ranks, device = options.tensor_parallel, options.device
    placed = read_placement(options.place).keys() & {EXPERTS, "thinker"}
    if placed:
        name = min(placed)
        raise InvalidRequest(
            f"tensor_parallel (--tp) shares the whole text model, but place puts its {name} elsewhere; leave one "
            "of them out"
        )
    if device.partition(":")[0] == "wgpu" or options.backend == "wgpu":
        raise InvalidRequest(
            "tensor_parallel (--tp) needs a backend of torch's (cuda, cpu or reference), not wgpu; leave it out, or "
            "take --device cuda"
        )
    if device.startswith("cuda:"):
        raise InvalidRequest(
            f"with tensor_parallel (--tp) each rank takes the GPU of its own number, so device is cuda, not "
            f"{device!r}; CUDA_VISIBLE_DEVICES chooses which there are"
        )
    needed = ranks_here(ranks)
    if device == "cuda" and (found := torch.accelerator.device_count()) < needed:
        fewer = f"take --tp {found}, or --device cpu" if found else "take --device cpu"
        raise InvalidRequest(f"tensor_parallel (--tp) {ranks} needs {needed} GPUs but there are {found}; {fewer}")
    for spec in decoder_and_head(files.config):
        spec.part(Share(0, ranks))
