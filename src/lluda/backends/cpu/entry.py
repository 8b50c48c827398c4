"""The cpu backend for the registry."""

from __future__ import annotations

from lluda.backends.backend import ComputeBackend, Precision
from lluda.backends.capabilities import BackendRequest, Capabilities
from lluda.backends.entry import BackendEntry
from lluda.formats.packed_bf16 import PACKED_BF16
from lluda.formats.q8_0 import Q8_0

CAPABILITIES = Capabilities(
    ("cpu",), ("bf16",), ("auto", "bf16", "packed"), ("exact", "q8_0"), stored_formats=(PACKED_BF16.name, Q8_0.name)
)


def _make(request: BackendRequest, _remark: str) -> ComputeBackend:
    from lluda.backends.cpu.backend import CpuBackend

    packed, q8_0_rows = request.weights == "packed", request.activations == "q8_0"
    return CpuBackend(request.device, Precision.of(request.dtype), packed=packed, q8_0_rows=q8_0_rows)


ENTRY = BackendEntry("cpu", CAPABILITIES, _make)
