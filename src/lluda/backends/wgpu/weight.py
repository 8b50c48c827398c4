"""Matrices as the wgpu backend is given them: on the host, where the torch executor and the upload read them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lluda.backends.executor.q8_weight import Q8Weight
from lluda.backends.weight import DenseWeight, Weight
from lluda.formats.packed_bf16 import BLOCK
from lluda.formats.stored_tensor import StoredTensor


class NoKernel(Exception):
    """What a step asks for that there is no kernel for; the message says what."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedWeight:
    """A matrix in the packed form of a file, decoded whenever the host needs its values."""

    stored: StoredTensor

    @property
    def format(self) -> str:
        """Storage format."""
        return self.stored.format.name

    @property
    def out_features(self) -> int:
        """Rows: width of the product."""
        return self.stored.shape[0]

    @property
    def in_features(self) -> int:
        """Columns: width of the rows it multiplies."""
        return self.stored.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes that one product reads."""
        return self.stored.nbytes

    def dense(self) -> DenseWeight:
        """Its values."""
        return DenseWeight(self.stored.decode(), "BF16")


def plain(weight: Weight) -> Weight:
    """A weight that the torch executor takes."""
    return weight.dense() if isinstance(weight, PackedWeight) else weight


def form_name(weight: Weight, *, packed: bool) -> str:
    """The form that a matrix takes on the device, one of `wgsl.forms.FORMS`; ``packed``: BF16 ones are packed.
    NoKernel: there is none for it."""
    columns = weight.in_features
    if isinstance(weight, Q8Weight):
        return "q8_0"
    if isinstance(weight, PackedWeight) or (isinstance(weight, DenseWeight) and weight.values.dtype is torch.bfloat16):
        if columns % 8:
            raise NoKernel(f"a BF16 matrix of {columns} columns, no multiple of 8")
        wanted = packed or isinstance(weight, PackedWeight)
        return "packed" if wanted and columns % BLOCK == 0 else "bf16"
    if isinstance(weight, DenseWeight) and weight.values.dtype is torch.float32 and columns % 4 == 0:
        return "f32"
    raise NoKernel(f"a {weight.format} matrix of {columns} columns")
