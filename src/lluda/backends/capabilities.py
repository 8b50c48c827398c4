"""What a kind of backend supports, and why it refuses what it does not."""

from __future__ import annotations

from dataclasses import dataclass

import torch

KEEPS_STORED = ("auto", "packed")
"""Values of ``weights`` with which a matrix stays in the format it is stored in, where there is a kernel for it."""


@dataclass(frozen=True, slots=True)
class BackendRequest:
    """What is asked of a backend: a torch device, a dtype (bf16, f32, f64), how matrices are held (auto, bf16, packed,
    blocked) and what Q8_0 weights multiply (exact, or rows rounded to q8_0). ``foreign`` is the name of a device that
    torch knows nothing of (``wgpu:0``); then ``device`` is where the tensors outside of it are."""

    device: torch.device
    dtype: str
    weights: str = "auto"
    activations: str = "exact"
    foreign: str = ""

    @property
    def device_name(self) -> str:
        """As it was asked for."""
        return self.foreign or str(self.device)

    @property
    def device_type(self) -> str:
        """The kind of device: what stands before the colon."""
        return self.device_name.partition(":")[0]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """``device_types`` as torch names them (empty: any of torch's), ``dtypes``, ``weights`` and ``activations`` as in
    `BackendRequest`, ``stored_formats``: the names of formats that matrices are multiplied in as they are stored
    (`lluda.formats`); those of any other are decoded."""

    device_types: tuple[str, ...]
    dtypes: tuple[str, ...]
    weights: tuple[str, ...]
    activations: tuple[str, ...]
    stored_formats: tuple[str, ...] = ()

    def takes(self, request: BackendRequest) -> bool:
        """Whether the device is of a kind that it computes on."""
        return request.device_type in self.device_types if self.device_types else not request.foreign

    def kept_formats(self, request: BackendRequest) -> frozenset[str]:
        """Formats that matrices stay in under ``request``: in a float32 or float64 run only one whose grid the rows are
        rounded to, since decoded numbers are as exact there, and faster."""
        if request.weights not in KEEPS_STORED:
            return frozenset()
        exact_run = request.dtype != "bf16"
        return frozenset(f for f in self.stored_formats if not exact_run or f.lower() == request.activations)

    def refusal(self, name: str, request: BackendRequest) -> str | None:
        """Why the backend ``name`` does not do ``request``, and what to do; None if it does."""
        if not self.takes(request):
            needs = {(): "a device of torch's", ("cpu",): "the CPU"}.get(self.device_types, "a GPU")
            remedy = f"take --device {(*self.device_types, 'cpu')[0]}"
            return f"the {name} backend needs {needs}, not device {request.device_name!r}; {remedy}"
        if request.weights == "packed" and request.dtype != "bf16":
            return "packed weights are those of a BF16 run; take --dtype bf16, or leave out --weights"
        if request.dtype not in self.dtypes:
            does = " and ".join(self.dtypes)
            remedy = f"--dtype {self.dtypes[0]}" if request.foreign else "--backend reference"
            return f"the {name} backend computes in {does}, not in {request.dtype}; take {remedy}"
        if request.weights not in self.weights:
            return f"the {name} backend holds no {request.weights} weights; take --weights {self.weights[0]}"
        if request.activations not in self.activations:
            return f"the {name} backend multiplies Q8_0 weights with exact rows; take --backend reference"
        return None
