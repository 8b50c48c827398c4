"""Which backends there are, and the choice among them: once, at load. What was chosen, and why, is printed.

A backend is a folder beside this file and one line in `_ENTRIES`, in the order in which ``auto`` prefers them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from lluda.backends.backend import ComputeBackend
from lluda.backends.capabilities import BackendRequest
from lluda.backends.cpu.entry import ENTRY as CPU
from lluda.backends.cuda.entry import ENTRY as CUDA
from lluda.backends.device import DeviceRuntime, register_runtime, runtime_of
from lluda.backends.entry import BackendEntry
from lluda.backends.reference.entry import ENTRY as REFERENCE
from lluda.backends.wgpu.entry import ENTRY as WGPU
from lluda.errors import InvalidRequest, MissingDependency, NativeLibraryError

ACTIVATIONS = ("exact", "q8_0")
WEIGHT_FORMATS = ("auto", "bf16", "packed", "blocked")

_ENTRIES: dict[str, BackendEntry] = {}


def register(entry: BackendEntry) -> None:
    """Add a backend, behind those there are but before the reference, which takes what no other does."""
    last = _ENTRIES.pop(REFERENCE.name, None)
    _ENTRIES[entry.name] = entry
    if last is not None:
        _ENTRIES[last.name] = last
    if entry.runtime is not None:
        for device_type in entry.capabilities.device_types:
            register_runtime(device_type, entry.runtime)


for _entry in (CPU, CUDA, WGPU, REFERENCE):
    register(_entry)


def backend_names() -> tuple[str, ...]:
    """All that can be asked for by name."""
    return tuple(_ENTRIES)


def support(request: BackendRequest) -> dict[str, str | None]:
    """Of each backend why it does not do ``request``; None if it does."""
    return {name: entry.refusal(request) for name, entry in _ENTRIES.items()}


def select_backend(
    name: str, device: str, dtype: str, weights: str = "auto", activations: str = "exact"
) -> ComputeBackend:
    """The backend ``name`` on a device, computing in ``dtype`` (bf16, f32, f64), holding matrices as ``weights``.

    ``auto`` is the first that does all of it and can be had: the cpu backend (BF16 on the CPU, native library built),
    the cuda backend (BF16 and F32 on a GPU, Triton installed), the wgpu backend (BF16 on device ``wgpu``), else the
    reference, which then says why. Weights: ``bf16`` as stored, zero-copy; ``packed`` to 12 bits (cpu, cuda, wgpu
    backend); ``blocked`` in oneDNN's order (reference,
    BF16 on the CPU); ``auto`` is blocked for the reference where it can be, else as stored. Activations: what Q8_0
    weights multiply: ``exact`` rows, or rows rounded to ``q8_0``, as llama.cpp does.

    Raises:
        InvalidRequest: a name, device or format there is not, or a combination that does not go together.
        NativeLibraryError: the cpu backend was asked for and its library cannot be used.
        MissingDependency: the cuda or the wgpu backend was asked for and Triton or wgpu-py is not installed.
    """
    if name != "auto" and name not in _ENTRIES:
        raise InvalidRequest(f"backend {name!r} does not exist; choose one of auto, {', '.join(sorted(_ENTRIES))}")
    if weights not in WEIGHT_FORMATS:
        raise InvalidRequest(f"weights {weights!r} is not one of {', '.join(WEIGHT_FORMATS)}")
    if activations not in ACTIVATIONS:
        raise InvalidRequest(f"activations {activations!r} is not one of {', '.join(ACTIVATIONS)}")
    foreign = device if _foreign(device) else ""
    request = BackendRequest(usable_device(device), dtype, weights, activations, foreign)
    if name == "auto":
        return _first_that_can(request)
    entry = _ENTRIES[name]
    if weights not in entry.capabilities.weights:
        others = [other for other in _ENTRIES.values() if _holds(other, request)]
        needed = " or ".join(other.name for other in others) or "another"
        raise InvalidRequest(f"{weights} weights need the {needed} backend; leave out --backend {name}")
    refusal = entry.refusal(request)
    if refusal is not None and (request.foreign or entry.foreign):  # others see to it themselves
        raise InvalidRequest(refusal)
    return entry.make(request, "")


def _holds(entry: BackendEntry, request: BackendRequest) -> bool:
    """Whether it holds such weights on such a device."""
    return request.weights in entry.capabilities.weights and entry.capabilities.takes(request)


def _first_that_can(request: BackendRequest) -> ComputeBackend:
    failure: NativeLibraryError | MissingDependency | None = None
    for entry in _ENTRIES.values():
        if entry.refusal(request) is None:
            try:
                return entry.make(request, str(failure or ""))
            except (NativeLibraryError, MissingDependency) as error:
                failure = error
    if failure is not None:
        raise failure
    nearest = next((entry for entry in _ENTRIES.values() if _holds(entry, request)), REFERENCE)
    raise InvalidRequest(str(support(request)[nearest.name]))


def kept_formats(
    name: str, device: str, dtype: str, weights: str = "auto", activations: str = "exact"
) -> frozenset[str]:
    """The formats that matrices stay in on the backend that `select_backend` chooses, if it can be had; nothing is
    started to find out."""
    foreign = device if _foreign(device) else ""
    try:
        request = BackendRequest(torch.device("cpu" if foreign else device), dtype, weights, activations, foreign)
    except RuntimeError:  # no device of torch's: `usable_device` says so where it is to be used
        return frozenset()
    for entry in _ENTRIES.values():
        if name in ("auto", entry.name) and entry.refusal(request) is None:
            return entry.capabilities.kept_formats(request)
    return frozenset()


def usable_device(name: str) -> torch.device:
    """The torch device ``name``, after a small computation on it. InvalidRequest if that fails. Of a device that torch
    knows nothing of, whose adapter is looked for, the CPU: its tensors outside are there."""
    runtime_by_name = _foreign(name)
    if runtime_by_name is not None:
        return runtime_by_name(name).device
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:  # what torch raises depends on the device
        reason = str(error).splitlines()[0]
        raise InvalidRequest(
            f"device {name!r:.40} cannot be used: {reason:.120}; choose cpu, or a device that torch sees"
        ) from None
    return device


def best_device() -> str:
    """What device ``auto`` is: the first GPU that a backend finds here, in the order of `backend_names`, or ``cpu``."""
    return next((found for entry in _ENTRIES.values() if (found := entry.gpu())), "cpu")


def memory_available(name: str) -> int:
    """Bytes free now on the device ``name``; those of the machine where it shares them. Errors as `usable_device`."""
    return device_runtime(name).memory_available()


def device_runtime(name: str) -> DeviceRuntime:
    """What the host asks of the device ``name``. Errors as `usable_device`."""
    runtime_by_name = _foreign(name)
    return runtime_of(usable_device(name)) if runtime_by_name is None else runtime_by_name(name)


def _foreign(name: str) -> Callable[[str], DeviceRuntime] | None:
    """Of a device that torch knows nothing of, who finds it."""
    kind = name.partition(":")[0]
    entries = (entry for entry in _ENTRIES.values() if entry.foreign and kind in entry.capabilities.device_types)
    return next((entry.foreign for entry in entries), None)
