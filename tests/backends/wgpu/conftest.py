"""Tests of kernels run on the software driver, in each of the ways in which a GPU may differ from it."""

from __future__ import annotations

import os

import pytest

# The driver's threads beside those of pytest-xdist's workers would only wait for each other.
os.environ.setdefault("LP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def adapter():
    """The software driver."""
    pytest.importorskip("wgpu", reason="wgpu-py is not installed")
    from lluda.backends.wgpu.adapter import adapters

    found = [each for each in adapters() if each.kind == "CPU"]
    if not found:
        pytest.skip("there is no software Vulkan driver: apt-get install mesa-vulkan-drivers")
    return found[0]


WAYS = {
    "subgroups": {"checked": True},
    "subgroups-of-8": {"checked": True, "subgroup": 8},  # what the driver has, which reports 4: sums without a barrier
    "no-subgroups": {"checked": True, "subgroup": 0},
    "trusted": {"checked": False},
    "bindings-of-1-MiB": {"checked": True, "binding_bytes": 1 << 20, "matrix_bytes": 1 << 15},
}


@pytest.fixture(scope="session", params=list(WAYS), ids=list(WAYS))
def gpu(adapter, request):
    """A device in one of the ways."""
    from lluda.backends.wgpu.gpu import Gpu

    return Gpu(adapter, **WAYS[request.param])


@pytest.fixture(scope="session")
def one_gpu(adapter):
    """A device as tests of other things take it."""
    from lluda.backends.wgpu.gpu import Gpu

    return Gpu(adapter, checked=True)
