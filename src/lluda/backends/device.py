"""What the host asks of a device beside computing: how much memory is free, to wait, to give memory back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import psutil
import torch
from torch import Tensor


class DeviceRuntime:
    """A device that shares the host's memory and is asked in order: the CPU. Others override what differs."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def name(self) -> str:
        """What people call it."""
        return str(self.device)

    def memory_available(self) -> int:
        """Bytes free now."""
        return int(psutil.virtual_memory().available)

    def synchronize(self) -> None:
        """Wait until it has done what it was asked."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def release_memory(self) -> None:
        """Give memory that is taken and not in use back to the system."""

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether ``error`` says that memory did not suffice."""
        refused = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # torch's CPU allocator
        return refused or isinstance(error, torch.OutOfMemoryError | MemoryError)

    def is_lost(self) -> bool:
        """Whether it computes nothing any more, in this process: a GPU after a fault in a kernel."""
        return False

    def read_bandwidth(self) -> float | None:
        """Bytes a second that it reads of its memory, measured by a kernel of its own; None: torch can measure it."""
        return None

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Zeros on the host that the device can copy by itself."""
        return torch.zeros(tuple(shape), dtype=dtype)


_RUNTIMES: dict[str, Callable[[torch.device], DeviceRuntime]] = {}


def register_runtime(device_type: str, make: Callable[[torch.device], DeviceRuntime]) -> None:
    """Say how devices of a type, as torch names it, are asked."""
    _RUNTIMES[device_type] = make


def runtime_of(device: torch.device) -> DeviceRuntime:
    """What the host asks of ``device``."""
    return _RUNTIMES.get(device.type, DeviceRuntime)(device)
