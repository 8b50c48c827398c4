"""How fast a backend multiplies by weights of one format: what predictions are made of (`bench.prediction`).

Matrix products of random weights through the backend itself: of one row, over more weights than caches hold, and of
many rows. So what a format costs to decode, and what a machine reaches beside what it is sold as, is in the figures.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import Tensor

from lluda.backends.backend import ComputeBackend
from lluda.backends.weight import Weight
from lluda.bench.formats import BYTES_PER_WEIGHT
from lluda.bench.process.job import Sample
from lluda.formats.format import BlockFormat
from lluda.formats.plain import BF16, plain_tensor
from lluda.formats.q8_0 import Q8_0
from lluda.formats.stored_tensor import StoredTensor

OUT, IN = 8192, 2048
ROWS = 512
READ_TEST, FLOPS_TEST, BF16_TEST = "products1", f"products{ROWS}", f"products{ROWS}_bf16"
_TOTAL_BYTES, _LEAST = 512 << 20, 2
_PASSES, _ENOUGH_SECONDS = 7, 2.0


@dataclass(frozen=True, slots=True)
class Products:
    """``read``: bytes of weights a second in products of one row; ``flops``: floating-point operations a second in
    products of ``ROWS`` rows; ``bf16_flops``: the same of weights stored in BF16, as
    those of convolutions are in every format."""

    read: float
    flops: float
    bf16_flops: float

    def samples(self) -> Iterator[Sample]:
        """As rows of a worker, in GB/s and GFLOP/s."""
        yield Sample(READ_TEST, self.read / 1e9, "GB/s")
        yield Sample(FLOPS_TEST, self.flops / 1e9, "GFLOP/s")
        yield Sample(BF16_TEST, self.bf16_flops / 1e9, "GFLOP/s")

    @classmethod
    def of_samples(cls, medians: Mapping[str, float]) -> Products | None:
        """Of the values of such rows by their tests; None without them."""
        tests = (READ_TEST, FLOPS_TEST, BF16_TEST)
        return cls(*(medians[test] * 1e9 for test in tests)) if medians.keys() >= set(tests) else None


def measure_products(backend: ComputeBackend, format_name: str) -> Products:
    """Of weights ``[OUT, IN]`` that take as much memory as is free for it, half a gigabyte at most."""
    stored_as = Q8_0 if format_name.startswith("Q8_0") else BF16
    nbytes = BYTES_PER_WEIGHT[format_name] * OUT * IN
    free = backend.memory_available() // 4
    count = max(_LEAST, int(min(_TOTAL_BYTES, free) / nbytes))
    stored = _stored(backend, stored_as)
    weights = [_weight(backend, stored) for _ in range(count)]
    row, rows = (torch.randn(n, IN).to(backend.device, backend.precision.compute) for n in (1, ROWS))

    # A GPU multiplies many rows in less time than the host takes to ask for it.
    several = weights if backend.captures else weights[:1]
    one, many = _seconds(backend, row, weights), _seconds(backend, rows, several)
    multiplied = 2 * ROWS * OUT * IN
    read, flops = sum(weight.nbytes for weight in weights) / one, multiplied * len(several) / many
    plain = [_weight(backend, _stored(backend, BF16))] * len(several)
    return Products(read, flops, multiplied * len(several) / _seconds(backend, rows, plain))


def _stored(backend: ComputeBackend, stored_as: BlockFormat) -> StoredTensor:
    """Drawn like a released matrix: packed BF16 holds a range of exponents, which a constant would not have."""
    values = torch.empty(OUT, IN, dtype=torch.bfloat16, device=backend.device).normal_(0, 0.02)
    data = None if stored_as is BF16 else stored_as.encode(values)
    return plain_tensor(values) if data is None else StoredTensor(stored_as, (OUT, IN), data)


def _weight(backend: ComputeBackend, stored: StoredTensor) -> Weight:
    """With memory of its own: a backend may read the stored bytes as they lie."""
    return backend.take(replace(stored, data=stored.data.clone()), "matrix")[0]


@torch.inference_mode()
def _seconds(backend: ComputeBackend, rows: Tensor, weights: Sequence[Weight]) -> float:
    """Median of several, or as many as there is time for, after one to warm up."""
    times, run = list[float](), backend.product_run(rows, weights)
    for _ in range(1 + _PASSES):
        begun = time.perf_counter()
        run()
        backend.synchronize()
        times.append(time.perf_counter() - begun)
        if sum(times[1:]) > _ENOUGH_SECONDS:
            break
    return median(times[1:])
