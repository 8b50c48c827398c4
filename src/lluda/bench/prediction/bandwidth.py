"""The streaming bandwidth of the machine's memory, or of a GPU's: what decoding is limited by, and every row's share is
a share of.

``python -m lluda.bench.prediction.bandwidth`` measures it in a process of its own, with the protocol of
`lluda.bench.process.worker`. A buffer far larger than any cache, on huge pages where the system gives them, is read
from one end to the other by N threads, each its own part. Several readers are tried, for which instruction sequence
streams best differs by machine; the median pass of the best reader counts, as medians of engines are held against it.
On a GPU one buffer is copied to another.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from json import dumps
from statistics import median
from threading import Thread
from typing import TYPE_CHECKING, Any

import psutil

from lluda.bench.process.job import Job, Sample

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BUFFER_BYTES = 1 << 30
_COPY_BYTES = 4 << 30
_PASSES = 10

Reader = Callable[[Any], object]
"""Reads every byte of one thread's part of the buffer (``NDArray[uint8]``), without holding the interpreter's lock.
What it returns changes with any byte that becomes another (0 for the search): so a test sees that all are read."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Bytes read a second, and how that was measured."""

    bytes_per_second: float
    method: str


def readers() -> dict[str, Reader]:
    """What there is to read with. Native kernels put theirs here, with the loads their products use."""
    import numpy as np

    found: dict[str, Reader] = {"numpy.bitwise_or.reduce of 64-bit words": lambda part: _reduce(np, part)}
    if sys.platform != "win32":
        libc = ctypes.CDLL(None)
        libc.memchr.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
        libc.memchr.restype = ctypes.c_void_p
        # A search for a byte that is not there reads all and writes nothing.
        found["libc memchr"] = lambda part: libc.memchr(part.ctypes.data, 0, part.nbytes)
    return found


def measure_bandwidth(threads: int, nbytes: int = BUFFER_BYTES) -> Reading:
    """The best reader's median of several passes over ``nbytes`` with ``threads`` threads."""
    parts = _parts(_buffer(nbytes), threads)
    how = f"{nbytes / 2**30:.3g} GiB, {threads} threads, median of {_PASSES} passes"
    readings = [
        Reading(nbytes / median(_pass_seconds(reader, parts) for _ in range(_PASSES)), f"{name}, {how}")
        for name, reader in readers().items()
    ]
    return max(readings, key=lambda reading: reading.bytes_per_second)


def _buffer(nbytes: int) -> NDArray[np.uint8]:
    import numpy as np

    memory = mmap.mmap(-1, nbytes)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    buffer = np.frombuffer(memory, dtype=np.uint8)
    buffer[:] = 1
    return buffer


def _parts(buffer: NDArray[np.uint8], threads: int) -> list[NDArray[np.uint8]]:
    size = max(len(buffer) // threads // 64 * 64, 64)
    ends = [size * index for index in range(threads)] + [len(buffer)]
    return [buffer[begin:end] for begin, end in pairwise(ends)]


def _pass_seconds(reader: Reader, parts: list[NDArray[np.uint8]]) -> float:
    workers = [Thread(target=reader, args=(part,)) for part in parts]
    begun = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return time.perf_counter() - begun


def _reduce(np: Any, part: NDArray[np.uint8]) -> object:
    return np.bitwise_or.reduce(part[: part.nbytes // 8 * 8].view(np.int64))


def measure_device(name: str) -> Reading:
    """A GPU's: the median of several copies on it, bytes read and written; of one that torch does not know, reads."""
    import torch

    from lluda.backends import device_runtime

    runtime = device_runtime(name)
    read = runtime.read_bandwidth()
    if read is not None:
        return Reading(read, "a kernel that reads, best of several passes")
    device = runtime.device
    nbytes = min(_COPY_BYTES, runtime.memory_available() // 4)
    source = torch.empty(nbytes, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    seconds = []
    for _ in range(_PASSES + 1):
        runtime.synchronize()
        begun = time.perf_counter()
        target.copy_(source)
        runtime.synchronize()
        seconds.append(time.perf_counter() - begun)
    return Reading(2 * nbytes / median(seconds[1:]), "device-to-device copy, bytes both ways")


def measure(job: Job) -> Reading:
    """Of the memory that a job's weights lie in."""
    if not job.device.startswith("cpu"):
        return measure_device(job.device)
    return measure_bandwidth(job.threads, min(BUFFER_BYTES, psutil.virtual_memory().available // 4))


def sample(reading: Reading) -> Sample:
    """As a row of a worker."""
    return Sample("bandwidth", reading.bytes_per_second / 1e9, "GB/s")


def main() -> int:
    """Measure for the job on stdin; one row on stdout."""
    measured = measure(Job.from_json(sys.stdin.read()))
    print(dumps({"info": {"format": "", "bytes_per_weight": 0.0, "settings": measured.method}}))
    print(dumps(asdict(sample(measured))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
