"""Recording launches into a pass: by a loop of the native library, or call by call through cffi.

wgpu's commands cannot be used twice, so that each step is recorded anew. The native library is given the addresses of
wgpu's functions and links to nothing of it.
"""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from wgpu.backends.wgpu_native import ffi, lib

from lluda.errors import NativeLibraryError
from lluda.files.native_file import native_file

Call = tuple[Any, Any, int, int, int]
"""wgpu's handles of a pipeline and of its bindings, and workgroups along x, y and z."""


class Recorder(ABC):
    """``name`` says how it records."""

    name: str

    @abstractmethod
    def table(self, calls: Sequence[Call]) -> Any:
        """The calls as `record` takes them."""

    @abstractmethod
    def record(self, compute: Any, table: Any) -> None:
        """Put all calls of a table into a pass (wgpu's handle)."""


class CffiRecorder(Recorder):
    """wgpu-py's own methods cost three times as much."""

    name = "cffi"

    def table(self, calls: Sequence[Call]) -> Any:
        """See `Recorder`."""
        return list(calls)

    def record(self, compute: Any, table: Any) -> None:
        """See `Recorder`."""
        nothing, last = ffi.NULL, None
        set_pipeline, set_group = lib.wgpuComputePassEncoderSetPipeline, lib.wgpuComputePassEncoderSetBindGroup
        dispatch = lib.wgpuComputePassEncoderDispatchWorkgroups
        for pipeline, group, x, y, z in table:
            if pipeline is not last:
                set_pipeline(compute, pipeline)
                last = pipeline
            set_group(compute, 0, group, 0, nothing)
            dispatch(compute, x, y, z)


class NativeRecorder(Recorder):
    """``lluda_record_launches``. NativeLibraryError: there is no native library that has it."""

    name = "native"

    def __init__(self) -> None:
        path = native_file()
        try:
            self._record = ctypes.CDLL(str(path)).lluda_record_launches
        except (OSError, AttributeError) as error:
            raise NativeLibraryError(f"{path}: records no launches ({error}); build it again: make native") from None
        self._record.restype = None
        self._record.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, *[ctypes.c_void_p] * 3)
        names = ("SetPipeline", "SetBindGroup", "DispatchWorkgroups")
        self._functions = [_address(ffi.addressof(lib, f"wgpuComputePassEncoder{name}")) for name in names]

    def table(self, calls: Sequence[Call]) -> Any:
        """See `Recorder`."""
        rows = [(_address(pipeline), _address(group), *grid) for pipeline, group, *grid in calls]
        return np.array(rows, np.uint64).reshape(-1, 5)

    def record(self, compute: Any, table: Any) -> None:
        """See `Recorder`."""
        self._record(_address(compute), table.ctypes.data, len(table), *self._functions)


def best_recorder() -> Recorder:
    """The native one where the library is built."""
    try:
        return NativeRecorder()
    except NativeLibraryError:
        return CffiRecorder()


def _address(pointer: Any) -> int:
    return int(ffi.cast("uintptr_t", pointer))
