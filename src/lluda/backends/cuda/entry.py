"""The cuda backend for the registry."""

from __future__ import annotations

from lluda.backends.backend import ComputeBackend, Precision
from lluda.backends.capabilities import BackendRequest
from lluda.backends.cuda.capabilities import CAPABILITIES
from lluda.backends.cuda.device import CudaRuntime, gpu
from lluda.backends.entry import BackendEntry
from lluda.errors import MissingDependency


def _make(request: BackendRequest, _remark: str) -> ComputeBackend:
    try:
        from lluda.backends.cuda.backend import CudaBackend
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise MissingDependency(
            "the cuda backend needs Triton, which torch for GPUs brings along: pip install triton"
        ) from None
    packed, q8_0_rows = request.weights == "packed", request.activations == "q8_0"
    return CudaBackend(request.device, Precision.of(request.dtype), packed=packed, q8_0_rows=q8_0_rows)


ENTRY = BackendEntry("cuda", CAPABILITIES, _make, CudaRuntime, gpu=gpu)
