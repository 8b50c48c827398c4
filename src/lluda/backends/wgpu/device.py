"""What the host asks of a GPU that wgpu finds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lluda.backends.device import DeviceRuntime
from lluda.backends.wgpu.adapter import choose

if TYPE_CHECKING:
    from lluda.backends.wgpu.probe import Probe

_CARDS = Path("/sys/class/drm")


class WgpuRuntime(DeviceRuntime):
    """``name`` as `adapter.choose` takes it. Tensors outside are on the CPU."""

    def __init__(self, name: str) -> None:
        super().__init__(torch.device("cpu"))
        self._adapter = choose(name)

    def name(self) -> str:
        """What people call it."""
        return self._adapter.describe()

    def memory_available(self) -> int:
        """Bytes free now. wgpu reports none: of AMD's cards the kernel does; of others it is the machine's memory, so
        that a card with less says at loading that it has too little."""
        cards = [free for free in map(_free_of_card, sorted(_CARDS.glob("card?/device"))) if free is not None]
        amd = self._adapter.driver.lower().startswith("radv") or "amd" in self._adapter.name.lower()
        return max(cards) if cards and amd else super().memory_available()

    def read_bandwidth(self) -> float:
        """See `probe.read_bandwidth`."""
        from lluda.backends.wgpu.gpu import Gpu
        from lluda.backends.wgpu.probe import read_bandwidth

        return read_bandwidth(Gpu(self._adapter), self.memory_available())

    def probe(self) -> Probe:
        """See `probe.probe`."""
        from lluda.backends.wgpu.probe import probe

        return probe(self._adapter, self.memory_available())


def _free_of_card(device: Path) -> int | None:
    """Video memory, and the machine's memory that the card may use (GTT), as amdgpu reports them."""
    try:
        sizes = {
            kind + state: int((device / f"mem_info_{kind}_{state}").read_text())
            for kind in ("vram", "gtt")
            for state in ("total", "used")
        }
    except OSError:
        return None
    return sum(sizes[f"{kind}total"] - sizes[f"{kind}used"] for kind in ("vram", "gtt"))
