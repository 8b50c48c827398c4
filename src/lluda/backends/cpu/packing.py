"""BF16 matrices into packed form, by the native library (docs/formats.md)."""

from __future__ import annotations

import ctypes

from torch import Tensor

from lluda.backends.cpu.native_library import INCOMPRESSIBLE, NativeContext
from lluda.backends.cpu.weight_memory import WeightMemory


def pack_matrix(values: Tensor, memory: WeightMemory, native: NativeContext) -> Tensor | None:
    """A contiguous BF16 matrix in packed form (uint8, in ``memory``), made on the context's threads; None if that saves
    too little."""
    size = ctypes.c_int64()
    code = native.pack_size(values.data_ptr(), *values.shape, ctypes.byref(size))
    if code == INCOMPRESSIBLE:
        return None
    native.check(code)
    packed = memory.allocate(size.value)
    native.check(native.pack(values.data_ptr(), *values.shape, packed.data_ptr(), size.value))
    return packed
