"""One member's part of a stored tensor, for a tensor-parallel group."""

from __future__ import annotations

import torch
from torch import Tensor

from lluda.errors import CorruptFile
from lluda.parameters import ParameterSpec
from lluda.weights.entry import Checkpoint


def read_part(checkpoint: Checkpoint, spec: ParameterSpec, rank: int, ranks: int) -> Tensor | None:
    """The values that member ``rank`` of ``ranks`` has of ``spec``, contiguous and in the stored dtype; None for a
    tensor of another member's experts. Of plain numbers only these are read, of block formats the whole tensor is
    decoded. A bias that the first member adds alone is zeros for the others.

    Raises:
        CorruptFile: no such tensor, or of another shape.
        InvalidRequest: it cannot be shared by so many.
    """
    name = spec.name if spec.name in checkpoint.entries else spec.tied_to or spec.name
    if name not in checkpoint.entries:
        raise CorruptFile(checkpoint.path, f"missing tensor {spec.name}")
    found = checkpoint.entries[name].shape
    if found != spec.shape:
        raise CorruptFile(checkpoint.path, f"shape of {name}", expected=list(spec.shape), found=list(found))
    part = spec.part(rank, ranks)
    if part is not None:
        return checkpoint.tensor(name)[part].contiguous()
    if spec.split == "experts":
        return None
    return torch.zeros_like(checkpoint.tensor(name))
