"""What Triton compiles for: the one place that knows an extension of NVIDIA's alone.

Programmatic dependent launch (compute capability 9.0 and later) lets a kernel's programs start while the kernel before
it still runs: they ask for their weights, which nothing writes, and only then wait for their input. Elsewhere this
compiles to nothing, and kernels start in turn.
"""

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
