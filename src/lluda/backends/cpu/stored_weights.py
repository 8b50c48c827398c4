"""Matrices that the native kernels read in the format a file has them in, where they lie."""

from __future__ import annotations

from lluda.backends.cpu.native_blocks import NativeWeight
from lluda.backends.cpu.native_library import FORMAT_Q8_0, FORMAT_Q8_0_ROWS, NativeContext, WeightStruct
from lluda.formats.packed_bf16 import PACKED_BF16
from lluda.formats.q8_0 import Q8_0
from lluda.formats.stored_tensor import StoredTensor


def stored_weight(stored: StoredTensor, native: NativeContext, *, q8_0_rows: bool) -> NativeWeight | None:
    """``stored`` as the kernels read it, of its own memory; None: there is no kernel for its format. ``q8_0_rows``:
    Q8_0 weights are multiplied with rows rounded to Q8_0."""
    data = stored.data
    if stored.format is PACKED_BF16:
        return NativeWeight(native.library.packed_view(data), data, PACKED_BF16.name)
    if stored.format is Q8_0:
        kind = FORMAT_Q8_0_ROWS if q8_0_rows else FORMAT_Q8_0
        return NativeWeight(WeightStruct(kind, 0, *stored.shape, data.data_ptr()), data, Q8_0.name)
    return None
