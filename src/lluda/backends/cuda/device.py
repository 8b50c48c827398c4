"""What the host asks of a GPU that torch calls cuda (NVIDIA's, and AMD's in the ROCm build)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lluda.backends.device import DeviceRuntime


def gpu() -> str | None:
    """``cuda`` where torch sees such a GPU."""
    return "cuda" if torch.cuda.is_available() else None


class CudaRuntime(DeviceRuntime):
    """Its current stream is what is waited for."""

    def name(self) -> str:
        """The card's."""
        return torch.cuda.get_device_name(self.device)

    def memory_available(self) -> int:
        """Bytes free now."""
        return int(torch.cuda.mem_get_info(self.device)[0])

    def synchronize(self) -> None:
        """Wait until the current stream is empty."""
        torch.cuda.current_stream(self.device).synchronize()

    def release_memory(self) -> None:
        """Give back what torch keeps for later."""
        torch.cuda.empty_cache()

    def is_lost(self) -> bool:
        """Whether a fault is reported, as from then on by every call."""
        try:
            torch.cuda.synchronize(self.device)
        except RuntimeError:
            return True
        return False

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Zeros in page-locked memory."""
        return torch.zeros(tuple(shape), dtype=dtype, pin_memory=True)
