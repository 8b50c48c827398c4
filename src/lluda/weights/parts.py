"""One rank's part of a stored tensor, for a model that several share."""

from __future__ import annotations

import torch

from lluda.errors import InvalidRequest
from lluda.formats.plain import plain_tensor
from lluda.formats.stored_tensor import StoredTensor
from lluda.parameters import ParameterSpec, Share


def stored_part(stored: StoredTensor, spec: ParameterSpec, share: Share) -> StoredTensor:
    """What ``share`` has of the tensor of ``spec``, in its format: a view of the same bytes where it is whole rows,
    else a copy of its columns alone. What the first rank adds alone is zeros for the others.

    InvalidRequest: it cannot be shared by so many, or its format cannot be cut there.
    """
    part = spec.part(share)
    if part is None:
        return plain_tensor(torch.zeros(spec.shape))
    if part == slice(0, spec.shape[spec.axis]):
        return stored
    cut = stored.format.part(stored, spec.axis, part)
    if cut is None:
        raise InvalidRequest(
            f"{stored.where}: {stored.format.name} {spec.split} {part.start} to {part.stop} of {list(stored.shape)} "
            f"begin or end inside a block, so {share.ranks} ranks cannot share it; take a smaller tensor_parallel "
            "(--tp), or this model in BF16"
        )
    return cut
