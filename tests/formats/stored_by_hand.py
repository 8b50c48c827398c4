"""Values as tensors of formats, for tests of those who take them."""

from __future__ import annotations

import torch

from lluda.formats.q8_0 import Q8_0
from lluda.formats.stored_tensor import StoredTensor


def q8_0_tensor(values: torch.Tensor) -> StoredTensor:
    """Quantised to Q8_0."""
    data = Q8_0.encode(values)
    assert data is not None
    return StoredTensor(Q8_0, tuple(values.shape), data)
