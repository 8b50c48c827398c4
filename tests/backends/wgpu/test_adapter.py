"""Which adapter a device's name means, and what is said where there is none."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from lluda.backends import device_runtime, kept_formats, memory_available, select_backend, usable_device
from lluda.backends.wgpu.adapter import Adapter, choose
from lluda.errors import InvalidRequest


def made(number, name, kind):
    return Adapter(number, name, "RADV", kind, "Vulkan", (32, 64), (), {}, None)


CARD, INSIDE = made(0, "Radeon RX 7900", "DiscreteGPU"), made(1, "Radeon 8060S", "IntegratedGPU")
SOFTWARE = made(2, "llvmpipe", "CPU")


@pytest.mark.parametrize(
    ("device", "found"),
    [("wgpu", CARD), ("wgpu:1", INSIDE), ("wgpu:8060s", INSIDE), ("wgpu:llvmpipe", SOFTWARE), ("wgpu:2", SOFTWARE)],
)
def test_a_name_chooses(device, found):
    assert choose(device, [CARD, INSIDE, SOFTWARE]) is found


def test_a_software_driver_is_never_taken_unasked():
    with pytest.raises(InvalidRequest, match=r"only a software driver was found.*--device cpu.*--device wgpu:2"):
        choose("wgpu", [SOFTWARE])


@pytest.mark.parametrize("device", ["wgpu:7", "wgpu:nobody"])
def test_what_is_not_there_is_named_with_what_is(device):
    with pytest.raises(InvalidRequest, match=f"{device}' is no adapter that wgpu finds; there is wgpu:0 Radeon RX"):
        choose(device, [CARD])
    with pytest.raises(InvalidRequest, match="none: install a Vulkan driver"):
        choose(device, [])


def test_without_wgpu_the_package_is_named(monkeypatch):
    code = "import sys; sys.modules['wgpu'] = None\nfrom lluda.backends import select_backend\n"
    code += "select_backend('auto', 'wgpu', 'bf16')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "MissingDependency" in done.stderr and "pip install 'lluda[wgpu]'" in done.stderr


def test_its_device_is_asked_by_name(adapter):
    name = adapter.device
    backend = select_backend("auto", name, "bf16", "packed")
    assert backend.name == "wgpu" and backend.device == usable_device(name) == torch.device("cpu")
    assert kept_formats("auto", name, "bf16") == {"Q8_0", "PACKED_BF16"}
    assert device_runtime(name).name() in backend.describe()
    assert memory_available(name) > 0 and not backend.is_lost()
    with pytest.raises(InvalidRequest, match="wgpu backend computes in bf16, not in f32; take --dtype bf16"):
        select_backend("auto", name, "f32")
    with pytest.raises(InvalidRequest, match="reference backend needs a device of torch's, not device 'wgpu"):
        select_backend("reference", name, "bf16")
    with pytest.raises(InvalidRequest, match="wgpu backend needs a GPU, not device 'cpu'; take --device wgpu"):
        select_backend("wgpu", "cpu", "bf16")


def test_memory_that_does_not_suffice_is_told(one_gpu, monkeypatch):
    import wgpu

    from lluda.errors import OutOfMemory

    def refuse(**_):
        raise wgpu.GPUOutOfMemoryError("no")

    monkeypatch.setattr(one_gpu._device, "create_buffer", refuse)
    with pytest.raises(OutOfMemory, match=r"1,024 bytes on llvmpipe.*--weights packed"):
        one_gpu.buffer(1024)


def test_a_device_that_answers_no_more_is_lost(adapter):
    from lluda.backends.wgpu.gpu import Gpu

    gpu = Gpu(adapter)
    assert not gpu.is_lost()
    gpu._device.destroy()
    assert gpu.is_lost()
