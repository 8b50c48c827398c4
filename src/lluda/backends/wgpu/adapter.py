"""The GPUs that wgpu finds on this machine, and the choice among them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from lluda.errors import InvalidRequest
from lluda.extras import missing

DEVICE = "wgpu"
"""Devices are called ``wgpu`` (the best real GPU), ``wgpu:1`` (by number) or ``wgpu:radv`` (by a part of the name)."""

_INTERFACES = ("Vulkan", "Metal", "D3D12")
_LEAST_SUBGROUP = {0x10DE: 32, 0x1002: 32, 0x106B: 32, 0x8086: 8}
"""Threads that a subgroup of a vendor's GPUs has at least, by the vendor's PCI number: NVIDIA, AMD, Apple, Intel. Some
drivers report 4 to 128, whatever they have."""

_BEST_FIRST = ("DiscreteGPU", "IntegratedGPU", "VirtualGPU", "Unknown", "CPU")


@dataclass(frozen=True, slots=True)
class Adapter:
    """A GPU, or a driver that computes on the CPU (``kind`` CPU). ``handle`` is wgpu's object."""

    number: int
    name: str
    driver: str
    kind: str
    interface: str
    subgroup: tuple[int, int]
    """Threads of a subgroup, fewest and most; zeros where the adapter has none."""
    features: tuple[str, ...]
    limits: dict[str, int]
    handle: Any

    @property
    def device(self) -> str:
        """The name that chooses it."""
        return f"{DEVICE}:{self.number}"

    def describe(self) -> str:
        """One line for people."""
        software = ", a software driver" if self.kind == "CPU" else ""
        return f"{self.device} {self.name} ({self.driver}, {self.interface}{software})"


def adapters() -> list[Adapter]:
    """All that can compute, best first. MissingDependency: wgpu-py is not installed."""
    found = [each for each in _instance().enumerate_adapters_sync() if each.info["backend_type"] in _INTERFACES]
    found.sort(key=lambda each: _BEST_FIRST.index(_kind(each)))
    return [_adapter(number, each) for number, each in enumerate(found)]


def choose(device: str, among: Sequence[Adapter] | None = None) -> Adapter:
    """The adapter that ``device`` names. One that computes on the CPU is never chosen unless it is named: it would be
    slower than the cpu backend, which nobody would notice.

    Raises:
        InvalidRequest: there is none, or none of that number or name.
        MissingDependency: wgpu-py is not installed.
    """
    found = adapters() if among is None else among
    wanted = device.removeprefix(DEVICE).removeprefix(":")
    if wanted.isdigit():
        named = [each for each in found if each.number == int(wanted)]
    elif wanted:
        named = [each for each in found if wanted.lower() in f"{each.name} {each.driver}".lower()]
    else:
        named = [each for each in found if each.kind != "CPU"]
    if named:
        return named[0]
    there = "; ".join(each.describe() for each in found) or "none: install a Vulkan driver for the GPU"
    if not wanted and found:
        raise InvalidRequest(
            f"device {device!r}: no GPU, only a software driver was found ({there}); take --device cpu, which is "
            f"faster, or name it: --device {DEVICE}:{found[0].number}"
        )
    raise InvalidRequest(f"device {device!r:.60} is no adapter that wgpu finds; there is {there}")


@cache
def _instance() -> Any:
    """wgpu, with the interfaces that compute well."""
    try:
        import wgpu
        from wgpu.backends.wgpu_native.extras import set_instance_extras
    except ModuleNotFoundError as error:
        if error.name != "wgpu":
            raise
        raise missing("the wgpu backend", "wgpu") from None
    # Mesa's layer that sorts adapters asks the desktop, and without one complains on stderr; they are sorted here.
    os.environ.setdefault("NODEVICE_SELECT", "1")
    set_instance_extras(backends=("Vulkan", "Metal", "DX12"))
    return wgpu.gpu


def _kind(handle: Any) -> str:
    kind = str(handle.info["adapter_type"])
    return kind if kind in _BEST_FIRST else "Unknown"


def _adapter(number: int, handle: Any) -> Adapter:
    info = handle.info
    # wgpu-py 0.32 misspells the names of the sizes of subgroups.
    sizes = [info.get(f"subgroup_{end}_size") or info.get(f"stackgroup_{end}_size") or 0 for end in ("min", "max")]
    fewest, most = max(int(sizes[0]), _LEAST_SUBGROUP.get(int(info.get("vendor_id") or 0), 0)), int(sizes[1])
    features = tuple(sorted(handle.features))
    return Adapter(
        number=number,
        name=str(info["device"]),
        driver=str(info["description"] or info["vendor"]),
        kind=_kind(handle),
        interface=str(info["backend_type"]),
        subgroup=(fewest, most) if "subgroup" in features else (0, 0),
        features=features,
        limits={name: int(value) for name, value in handle.limits.items()},
        handle=handle,
    )
