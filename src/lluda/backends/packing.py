"""BF16 matrices into packed form and opened again, by the native library (docs/formats.md)."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from lluda.backends.native_library import INCOMPRESSIBLE, WeightStruct, native_library
from lluda.backends.weight_memory import WeightMemory


def share_torch_threads() -> None:
    """As many threads for the native library as torch has. NativeLibraryError: the library cannot be used."""
    native = native_library()
    native.check(native.set_threads(torch.get_num_threads()))


def pack_matrix(values: Tensor, memory: WeightMemory) -> Tensor | None:
    """A contiguous BF16 matrix in packed form (uint8, in ``memory``), made on the library's threads; None if that saves
    too little. NativeLibraryError: the library cannot be used."""
    native, size = native_library(), ctypes.c_int64()
    code = native.pack_size(values.data_ptr(), *values.shape, ctypes.byref(size))
    if code == INCOMPRESSIBLE:
        return None
    native.check(code)
    packed = memory.allocate(size.value)
    native.check(native.pack(values.data_ptr(), *values.shape, packed.data_ptr(), size.value))
    return packed


def packed_view(packed: Tensor) -> WeightStruct:
    """The descriptor of a packed matrix, which reads ``packed``'s memory. NativeLibraryError: it breaks a rule."""
    native, struct = native_library(), WeightStruct()
    native.check(native.packed_view(packed.data_ptr(), packed.numel(), ctypes.byref(struct)))
    return struct
