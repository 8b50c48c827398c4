"""What computes. `backend.py` is the seam, `registry.py` the choice, `executor/` the torch operations that
`reference/`, `cpu/` and `cuda/` share."""

from lluda.backends.registry import (
    ACTIVATIONS,
    WEIGHT_FORMATS,
    backend_names,
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
    "kept_formats",
    "memory_available",
    "register",
    "select_backend",
    "usable_device",
]
