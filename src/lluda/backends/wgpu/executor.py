"""What all parts of the wgpu backend share: the device, what lies there, and what there is no kernel for."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch

from lluda.backends.backend import Precision
from lluda.backends.executor.executor import TorchExecutor
from lluda.backends.wgpu.gpu import Gpu
from lluda.backends.wgpu.memory.matrices import Matrices
from lluda.backends.wgpu.runs.row_run import RunMemory, Shapes
from lluda.backends.wgpu.weight import NoKernel

Made = TypeVar("Made")


class WgpuExecutor(TorchExecutor):
    """Components on the host, where a subclass has no kernels for them."""

    def __init__(self, gpu: Gpu, precision: Precision, *, packed: bool = False) -> None:
        super().__init__(torch.device("cpu"), precision)
        self._gpu, self._matrices = gpu, Matrices(gpu, packed=packed)
        self._memory = RunMemory(gpu, self._matrices)
        self._missing: dict[str, None] = {}
        self._runs: Shapes[Any] = Shapes()

    def where_there_are_kernels(self, make: Callable[[], Made]) -> Made | None:
        """None, and what is missing for `describe`, where there are not."""
        with self._gpu.lock:
            try:
                return make()
            except NoKernel as missing:
                self._missing[str(missing)] = None
                return None

    def run_of(self, shape: Hashable, make: Callable[[RunMemory], Made]) -> Made | None:
        """What is made once for a shape; None where a kernel is missing."""

        run: Made | None = self._runs.get(shape, lambda: self.where_there_are_kernels(lambda: make(self._memory)))
        return run
