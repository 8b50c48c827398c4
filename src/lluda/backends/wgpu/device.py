"""What the host asks of a GPU that wgpu finds."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lluda.backends.device import DeviceRuntime
from lluda.backends.wgpu.adapter import choose

if TYPE_CHECKING:
    from lluda.backends.wgpu.gpu import Gpu
    from lluda.backends.wgpu.steps.launch import Commands

_CARDS = Path("/sys/class/drm")
_READ_BYTES, _READS, _MOST_READS, _PASSES = 256 << 20, 2, 64, 4
_LONG_SECONDS = 0.02


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
        """The best of several passes over more memory than caches hold."""
        from lluda.backends.wgpu.gpu import Gpu
        from lluda.backends.wgpu.steps.launch import Commands, Launch
        from lluda.backends.wgpu.wgsl import bandwidth

        gpu = Gpu(self._adapter)
        nbytes = min(gpu.binding_limit, _READ_BYTES, self.memory_available() // 4)
        source, word = gpu.buffer(nbytes), gpu.buffer(4)
        shader, grid = bandwidth.read(nbytes)
        launch = Launch(shader, ((source, 0, source.nbytes), (word, 0, word.nbytes)), grid)
        # Long enough that asking for it is no part of the time.
        once = _seconds(gpu, Commands(gpu, [launch] * _READS)) / _READS
        reads = min(max(_READS, round(_LONG_SECONDS / once)), _MOST_READS)
        return reads * nbytes / _seconds(gpu, Commands(gpu, [launch] * reads))


def _seconds(gpu: Gpu, commands: Commands) -> float:
    """The shortest of several times."""
    seconds = []
    for _ in range(_PASSES):
        gpu.wait()
        begun = time.perf_counter()
        gpu.submit(commands.recorded())
        gpu.wait()
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


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
