"""The cpu backend for the registry."""

from __future__ import annotations

from lluda.backends.backend import ComputeBackend, Precision
from lluda.backends.capabilities import BackendRequest
from lluda.backends.cpu.capabilities import CAPABILITIES
from lluda.backends.entry import BackendEntry


def _make(request: BackendRequest, _remark: str) -> ComputeBackend:
    from lluda.backends.cpu.backend import CpuBackend

    packed, q8_0_rows = request.weights == "packed", request.activations == "q8_0"
    return CpuBackend(request.device, Precision.of(request.dtype), packed=packed, q8_0_rows=q8_0_rows)


ENTRY = BackendEntry("cpu", CAPABILITIES, _make)
