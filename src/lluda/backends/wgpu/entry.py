"""The wgpu backend for the registry."""

from __future__ import annotations

from lluda.backends.backend import ComputeBackend, Precision
from lluda.backends.capabilities import BackendRequest
from lluda.backends.device import DeviceRuntime
from lluda.backends.entry import BackendEntry
from lluda.backends.wgpu.capabilities import CAPABILITIES
from lluda.errors import InvalidRequest, MissingDependency


def _make(request: BackendRequest, _remark: str) -> ComputeBackend:
    from lluda.backends.wgpu.adapter import choose

    adapter = choose(request.device_name)  # MissingDependency before the backend is imported, which needs wgpu
    from lluda.backends.wgpu.backend import WgpuBackend
    from lluda.backends.wgpu.gpu import Gpu

    return WgpuBackend(Gpu(adapter), Precision.of(request.dtype), packed=request.weights == "packed")


def _runtime(name: str) -> DeviceRuntime:
    from lluda.backends.wgpu.device import WgpuRuntime

    return WgpuRuntime(name)


def _gpu() -> str | None:
    from lluda.backends.wgpu.adapter import choose

    try:
        return choose(CAPABILITIES.device_types[0]).device
    except (InvalidRequest, MissingDependency):  # a software driver alone, none, or no wgpu-py
        return None


ENTRY = BackendEntry("wgpu", CAPABILITIES, _make, foreign=_runtime, gpu=_gpu)
