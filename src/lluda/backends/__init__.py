"""Choosing a backend: once, at load, by name. Nothing falls back silently."""

from __future__ import annotations

import torch

from lluda.backends.base import ComputeBackend, Precision
from lluda.backends.reference import ReferenceBackend
from lluda.errors import InvalidRequest

BACKENDS: dict[str, type[ComputeBackend]] = {"reference": ReferenceBackend}


def select_backend(name: str, device: str, dtype: str) -> ComputeBackend:
    """The backend ``name`` (``auto``: the fastest that runs here) on a torch device, computing in ``dtype``
    (bf16, f32, f64). Raises InvalidRequest for a name or device there is not."""
    chosen = "reference" if name == "auto" else name
    if chosen not in BACKENDS:
        raise InvalidRequest(f"backend {name!r} does not exist; choose one of auto, {', '.join(BACKENDS)}")
    try:
        torch_device = torch.device(device)
        torch.empty(1, device=torch_device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidRequest(f"device {device!r} cannot be used: {reason}; choose cpu or a device torch sees") from None
    return BACKENDS[chosen](torch_device, Precision.of(dtype))
