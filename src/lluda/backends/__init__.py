"""Choosing a backend: once, at load, by name. Nothing falls back silently: what was chosen, and why, is printed."""

from __future__ import annotations

import torch

from lluda.backends.backend import ComputeBackend, Precision
from lluda.backends.reference.backend import ReferenceBackend, can_block
from lluda.errors import InvalidRequest, MissingDependency, NativeLibraryError

BACKENDS = ("cpu", "cuda", "reference")
ACTIVATIONS = ("exact", "q8_0")
WEIGHT_FORMATS = ("auto", "bf16", "packed", "blocked")


def select_backend(
    name: str, device: str, dtype: str, weights: str = "auto", activations: str = "exact"
) -> ComputeBackend:
    """The backend ``name`` on a torch device, computing in ``dtype`` (bf16, f32, f64), holding matrices as ``weights``.

    ``auto`` is the cpu backend where it applies (BF16 on the CPU, native library built), the cuda backend on a GPU
    (BF16 and F32, Triton installed), else the reference, which then says why. Weights: ``bf16`` as stored, zero-copy;
    ``packed`` to 12 bits (cpu, cuda backend); ``blocked`` in oneDNN's order (reference, BF16 on the CPU); ``auto`` is
    blocked for the reference where it can be, else as stored. Activations: what Q8_0 weights multiply: ``exact`` rows,
    or rows rounded to ``q8_0``, as llama.cpp does.

    Raises:
        InvalidRequest: a name, device or format there is not, or a combination that does not go together.
        NativeLibraryError: the cpu backend was asked for and its library cannot be used.
        MissingDependency: the cuda backend was asked for and Triton is not installed.
    """
    if name != "auto" and name not in BACKENDS:
        raise InvalidRequest(f"backend {name!r} does not exist; choose one of auto, {', '.join(BACKENDS)}")
    if weights not in WEIGHT_FORMATS:
        raise InvalidRequest(f"weights {weights!r} is not one of {', '.join(WEIGHT_FORMATS)}")
    if activations not in ACTIVATIONS:
        raise InvalidRequest(f"activations {activations!r} is not one of {', '.join(ACTIVATIONS)}")
    q8_0_rows = activations == "q8_0"
    torch_device, precision = usable_device(device), Precision.of(dtype)
    on_gpu = torch_device.type == "cuda"
    wanted = {"packed": "cuda" if on_gpu else "cpu", "blocked": "reference"}.get(weights, name)
    if name not in ("auto", wanted):
        raise InvalidRequest(f"{weights} weights need the {wanted} backend; leave out --backend {name}")
    if wanted == "auto" and on_gpu:
        wanted = "cuda" if dtype != "f64" and not q8_0_rows else "reference"
    elif wanted == "auto":
        wanted = "cpu" if dtype == "bf16" else "reference"
    remark = ""
    if wanted != "reference":
        try:
            make = _cpu if wanted == "cpu" else _cuda
            return make(torch_device, precision, weights, q8_0_rows)
        except (NativeLibraryError, MissingDependency) as error:
            if name == wanted or weights == "packed":
                raise
            remark = str(error)
    return _reference(torch_device, precision, weights, q8_0_rows, remark=remark)


def _reference(
    device: torch.device, precision: Precision, weights: str, q8_0_rows: bool, remark: str = ""
) -> ComputeBackend:
    possible = can_block(device, precision)
    if weights == "blocked" and not possible:
        raise InvalidRequest("blocked weights need BF16 on a CPU and a torch with oneDNN; take --weights bf16")
    blocked = possible and weights != "bf16"
    return ReferenceBackend(device, precision, blocked=blocked, q8_0_rows=q8_0_rows, remark=remark)


def _cpu(device: torch.device, precision: Precision, weights: str, q8_0_rows: bool) -> ComputeBackend:
    from lluda.backends.cpu.backend import CpuBackend

    return CpuBackend(device, precision, packed=weights == "packed", q8_0_rows=q8_0_rows)


def _cuda(device: torch.device, precision: Precision, weights: str, q8_0_rows: bool) -> ComputeBackend:
    try:
        from lluda.backends.cuda.backend import CudaBackend
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise MissingDependency(
            "the cuda backend needs Triton, which torch for GPUs brings along: pip install triton"
        ) from None
    return CudaBackend(device, precision, packed=weights == "packed", q8_0_rows=q8_0_rows)


def usable_device(name: str) -> torch.device:
    """The torch device ``name``, after a small computation on it. InvalidRequest if that fails."""
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:  # what torch raises depends on the device
        reason = str(error).splitlines()[0]
        raise InvalidRequest(
            f"device {name!r:.40} cannot be used: {reason:.120}; choose cpu, or a device that torch sees"
        ) from None
    return device
