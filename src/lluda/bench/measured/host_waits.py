"""How often the host waits for a GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch


def host_waits(work: Callable[[], object]) -> int:
    """How often ``work`` makes the host wait for the device, by the profiler's record of the driver's calls."""
    return _waits(work) - _waits(lambda: None)


def _waits(work: Callable[[], object]) -> int:
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as record:
        work()
    # A copy between the host's pageable memory and the device waits, too: it is a cudaMemcpyAsync and then a
    # cudaStreamSynchronize where torch does it.
    return sum(call.count for call in record.key_averages() if "Synchronize" in call.key or call.key == "cudaMemcpy")
