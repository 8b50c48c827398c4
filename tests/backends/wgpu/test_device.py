"""What the host asks of a GPU: free memory, how fast it reads and multiplies."""

from __future__ import annotations

from pathlib import Path

import pytest

from lluda.backends.backend import Precision
from lluda.backends.device import DeviceRuntime
from lluda.backends.wgpu import device as devices
from lluda.backends.wgpu.adapter import Adapter
from lluda.backends.wgpu.device import WgpuRuntime

GIB = 1 << 30


def card(folder: Path, name: str, **numbers: int) -> None:
    """A card as amdgpu shows it in sysfs."""
    made = folder / name / "device"
    made.mkdir(parents=True)
    for kind, value in numbers.items():
        (made / f"mem_info_{kind}").write_text(f"{value}\n")


def runtime_on(monkeypatch: pytest.MonkeyPatch, name: str, driver: str) -> WgpuRuntime:
    adapter = Adapter(0, name, driver, "IntegratedGPU", "Vulkan", (32, 64), (), {}, None)
    monkeypatch.setattr(devices, "choose", lambda _: adapter)
    return WgpuRuntime("wgpu")


def test_memory_of_amds_cards_is_what_the_kernel_says(monkeypatch, tmp_path):
    monkeypatch.setattr(devices, "_CARDS", tmp_path)
    card(tmp_path, "card0", vram_total=8 * GIB, vram_used=GIB)  # of another driver: not all is there
    card(tmp_path, "card1", vram_total=GIB // 2, vram_used=GIB // 4, gtt_total=110 * GIB, gtt_used=2 * GIB)
    (tmp_path / "card1-HDMI-A-1").mkdir()
    monkeypatch.setattr(DeviceRuntime, "memory_available", lambda _: 5)
    ours = runtime_on(monkeypatch, "AMD Radeon Graphics (RADV GFX1151)", "radv")
    assert ours.memory_available() == GIB // 4 + 108 * GIB
    assert runtime_on(monkeypatch, "Intel(R) Arc(tm) Graphics", "Mesa").memory_available() == 5
    monkeypatch.setattr(devices, "_CARDS", tmp_path / "nothing")
    assert runtime_on(monkeypatch, "AMD Radeon Graphics (RADV GFX1151)", "radv").memory_available() == 5


@pytest.mark.parametrize("name", ["BF16", "packed", "Q8_0"])
def test_products_are_measured_on_the_device(one_gpu, monkeypatch, name):
    from lluda.backends.wgpu.backend import WgpuBackend
    from lluda.bench.prediction import products

    for key, value in {"OUT": 256, "IN": 128, "_TOTAL_BYTES": 1 << 16, "_PASSES": 2}.items():
        monkeypatch.setattr(products, key, value)
    backend = WgpuBackend(one_gpu, Precision.of("bf16"), packed=name == "packed")
    monkeypatch.setattr(backend, "logits", None)  # what the host would multiply with
    measured = products.measure_products(backend, name)
    assert measured.read > 0 and measured.flops > 0 and "no kernels" not in backend.describe()


def test_the_software_driver_reads(adapter):
    assert WgpuRuntime(adapter.device).read_bandwidth() > 1e6
