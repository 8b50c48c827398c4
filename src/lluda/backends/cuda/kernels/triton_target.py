"""What Triton compiles for: the one place that knows an extension of NVIDIA's alone.

Programmatic dependent launch (compute capability 9.0 and later) lets a kernel's programs start while the kernel before
it still runs: they ask for their weights, which nothing writes, and only then wait for their input. Elsewhere this
compiles to nothing, and kernels start in turn.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from triton import knobs


@triton.jit
def take_input(PDL: tl.constexpr):
    """What the kernels before have written is visible after this, and the next kernel's programs may start.

    In this order: so whoever has started may read, even before it takes its input, what any kernel but the one in front
    of it has written."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


_INTERPRETED = tl.constexpr(bool(knobs.runtime.interpret))


@triton.jit
def product(a, b, PRECISION: tl.constexpr):
    """``a @ b`` in float32. PRECISION is of float32 factors; the interpreter knows no BF16 ones."""
    if _INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a, b, input_precision=PRECISION)


_ATTEMPTS = 10

_compiles_alone = ContextVar("compiles_alone", default=False)


class Kernel:
    """A function that the host launches: ``kernel[programs](*arguments)``. ``kept``: what it makes may be kept, so that
    it runs also while others are compiled alone (`compiling`)."""

    def __init__(self, function: Any, *, kept: bool) -> None:
        self._function, self._kept = function, kept

    def __getitem__(self, programs: tuple[int, ...]) -> Callable[..., object]:
        if _compiles_alone.get() and not self._kept:
            return partial(self._function.warmup, grid=programs)
        launch: Callable[..., object] = self._function[programs]
        return launch


def kernel(*, kept: bool = False, **options: Any) -> Callable[[Callable[..., Any]], Kernel]:
    """A function in Triton's language as a `Kernel`; ``options`` are those of ``triton.jit``."""
    return lambda function: Kernel(triton.jit(**options)(function), kept=kept)


class _Compilers(ThreadPoolExecutor):
    """Threads that compile. Python's parser sometimes fails where several threads parse at once, before 3.14 at least;
    what failed so is tried again."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return super().submit(_patiently, fn, *args, **kwargs)


def _patiently(work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    for _ in range(_ATTEMPTS - 1):
        try:
            return work(*args, **kwargs)
        except SystemError as error:
            if "AST" not in str(error):
                raise
    return work(*args, **kwargs)


@contextmanager
def compiling(threads: int) -> Iterator[None]:
    """What this thread launches meanwhile is compiled, each kernel once, by so many threads, and not run, but for what
    is ``kept``: results are whatever lies in memory. All is compiled at the end; what cannot be is raised then."""
    with _Compilers(threads) as pool, triton.AsyncCompileMode(pool):
        token = _compiles_alone.set(True)
        try:
            yield
        finally:
            _compiles_alone.reset(token)


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on any tensors (TRITON_INTERPRET=1, set before the import)."""
    return bool(knobs.runtime.interpret)


def has_dependent_launch(device: torch.device) -> bool:
    """Whether kernels for ``device`` may start before the one in front of them has ended."""
    if interpreted() or device.type != "cuda" or torch.version.cuda is None:
        return False
    return torch.cuda.get_device_capability(device)[0] >= 9


def launch_options(pdl: bool, warps: int) -> dict[str, Any]:
    """Keyword arguments of a kernel's launch."""
    return {"num_warps": warps, "PDL": pdl, **({"launch_pdl": True} if pdl else {})}
