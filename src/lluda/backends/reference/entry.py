"""The reference backend for the registry."""

from __future__ import annotations

from lluda.backends.backend import ComputeBackend, Precision
from lluda.backends.capabilities import BackendRequest
from lluda.backends.entry import BackendEntry
from lluda.backends.reference.capabilities import CAPABILITIES
from lluda.errors import InvalidRequest


def _make(request: BackendRequest, remark: str) -> ComputeBackend:
    from lluda.backends.reference.backend import ReferenceBackend, can_block

    precision = Precision.of(request.dtype)
    possible = can_block(request.device, precision)
    if request.weights == "blocked" and not possible:
        raise InvalidRequest("blocked weights need BF16 on a CPU and a torch with oneDNN; take --weights bf16")
    blocked, q8_0_rows = possible and request.weights != "bf16", request.activations == "q8_0"
    return ReferenceBackend(request.device, precision, blocked=blocked, q8_0_rows=q8_0_rows, remark=remark)


ENTRY = BackendEntry("reference", CAPABILITIES, _make)
