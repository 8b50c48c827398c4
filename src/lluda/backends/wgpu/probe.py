"""What a GPU takes for the least of things: reading memory, a launch, an answer."""

from __future__ import annotations

import time
from dataclasses import dataclass

from lluda.backends.wgpu.adapter import Adapter
from lluda.backends.wgpu.gpu import Gpu
from lluda.backends.wgpu.steps.launch import Commands, Launch, whole
from lluda.backends.wgpu.wgsl import bandwidth

_BYTES, _READS, _MOST_READS, _PASSES = 256 << 20, 2, 64, 4
_LONG_SECONDS = 0.02
_LAUNCHES, _SMALL_BYTES = 256, 1 << 15


@dataclass(frozen=True, slots=True)
class Probe:
    """``read`` bytes of memory a second; seconds of a ``launch`` that waits for the one before it, on the device; of
    ``recording`` a launch, on the host; and from a submission to its ``answer``. ``recorder``: what recorded."""

    read: float
    launch: float
    recording: float
    answer: float
    recorder: str


def probe(adapter: Adapter, memory: int) -> Probe:
    """Measure, within so many bytes of ``memory``. OutOfMemory: not even these are there."""
    gpu = Gpu(adapter)
    small = Commands(gpu, [_read(gpu, _SMALL_BYTES)] * _LAUNCHES)
    recording = min(_recording_seconds(small) for _ in range(_PASSES)) / _LAUNCHES
    answer = _seconds(gpu, Commands(gpu, [_read(gpu, _SMALL_BYTES)]))
    launch = max(0.0, _seconds(gpu, small) - answer) / (_LAUNCHES - 1)
    return Probe(read_bandwidth(gpu, memory), launch, recording, answer, gpu.recorder.name)


def read_bandwidth(gpu: Gpu, memory: int) -> float:
    """The best of several passes over more memory than caches hold."""
    nbytes = min(gpu.binding_limit, _BYTES, memory // 4)
    launch = _read(gpu, nbytes)
    # Long enough that asking for it is no part of the time.
    once = _seconds(gpu, Commands(gpu, [launch] * _READS)) / _READS
    reads = min(max(_READS, round(_LONG_SECONDS / once)), _MOST_READS)
    return reads * nbytes / _seconds(gpu, Commands(gpu, [launch] * reads))


def _read(gpu: Gpu, nbytes: int) -> Launch:
    shader, grid = bandwidth.read(nbytes)
    return Launch(shader, (whole(gpu.buffer(nbytes)), whole(gpu.buffer(4))), grid)


def _recording_seconds(commands: Commands) -> float:
    begun = time.perf_counter()
    commands.recorded()
    return time.perf_counter() - begun


def _seconds(gpu: Gpu, commands: Commands) -> float:
    """The shortest of several times."""
    seconds = []
    for _ in range(_PASSES):
        ready = commands.recorded()
        gpu.wait()
        begun = time.perf_counter()
        gpu.wait(gpu.submit(ready))
        seconds.append(time.perf_counter() - begun)
    return min(seconds)
