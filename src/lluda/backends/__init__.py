"""What computes. `backend.py` is the seam, `registry.py` the choice, `executor/` the torch operations that
`reference/`, `cpu/`, `cuda/` and `wgpu/` share."""

from lluda.backends.registry import (
    ACTIVATIONS,
    WEIGHT_FORMATS,
    backend_names,
    best_device,
    device_runtime,
    kept_formats,
    memory_available,
    register,
    select_backend,
    usable_device,
)

__all__ = [
    "ACTIVATIONS",
    "WEIGHT_FORMATS",
    "backend_names",
    "best_device",
    "device_runtime",
    "kept_formats",
    "memory_available",
    "register",
    "select_backend",
    "usable_device",
]
