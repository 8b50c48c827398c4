"""Heads, tables and experts by themselves: of a prompt, or of a decoder, whose layers run elsewhere."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lluda.backends.blocks import MixtureBlock, Norm
from lluda.backends.weight import Weight
from lluda.backends.wgpu.gpu import Gpu
from lluda.backends.wgpu.steps.launch import Commands
from lluda.backends.wgpu.steps.step import StepBuilder


class WgpuHead:
    """Logits of up to the builder's rows, which the host gives."""

    def __init__(self, gpu: Gpu, builder: StepBuilder, norm: Norm, weight: Weight) -> None:
        hidden = weight.in_features
        self._gpu, self._width = gpu, weight.out_features
        logits = builder.add_logits(builder.given_rows(hidden), norm, weight)
        self._x, self._result = builder.x(hidden), gpu.buffer(logits.nbytes, readable=True)
        self._commands, self._copy = Commands(gpu, builder.take_launches()), (logits, self._result, logits.nbytes)

    def __call__(self, x: Tensor) -> Tensor:
        """Rows ``[n, hidden]`` -> float logits ``[n, out_features]``."""
        with self._gpu.lock:
            self._gpu.write(self._x, 0, x.float().contiguous().numpy())
            submission = self._gpu.submit(self._commands.recorded([self._copy]))
            raw = self._gpu.read(self._result, 4 * len(x) * self._width, submission)
        return torch.from_numpy(raw.view(np.float32)).view(len(x), self._width)


class WgpuMixture:
    """A mixture block of up to the builder's rows, which the host gives."""

    def __init__(self, gpu: Gpu, builder: StepBuilder, block: MixtureBlock, hidden: int) -> None:
        builder.take_launches()  # what a block without a kernel left behind
        self._gpu, self._x = gpu, builder.add_mixture(block, hidden)
        self._result = gpu.buffer(self._x.nbytes, readable=True)
        self._commands = Commands(gpu, builder.take_launches())

    def __call__(self, x: Tensor) -> Tensor:
        """Rows ``[n, hidden]`` -> the same with what the block adds, float."""
        with self._gpu.lock:
            self._gpu.write(self._x, 0, x.float().contiguous().numpy())
            submission = self._gpu.submit(self._commands.recorded([(self._x, self._result, self._x.nbytes)]))
            raw = self._gpu.read(self._result, 4 * x.numel(), submission)
        return torch.from_numpy(raw.view(np.float32)).view(x.shape)


class WgpuTable:
    """Up to ``rows`` rows of a table at once."""

    def __init__(self, gpu: Gpu, builder: StepBuilder, table: Weight, rows: int) -> None:
        self._gpu, self._rows, self._width = gpu, rows, table.in_features
        builder.embed(table)
        x = builder.x(table.in_features)
        self._ids, self._result = builder.ids, gpu.buffer(x.nbytes, readable=True)
        self._commands, self._copy = Commands(gpu, builder.take_launches()), (x, self._result, x.nbytes)

    def __call__(self, ids: Tensor) -> Tensor:
        """Rows ``ids`` (int64 ``[n]``), float ``[n, width]``."""
        parts = [self._some(part) for part in torch.split(ids, self._rows)]
        return torch.cat(parts) if parts else torch.empty(0, self._width)

    def _some(self, ids: Tensor) -> Tensor:
        numbers = np.zeros(self._rows, np.uint32)
        numbers[: len(ids)] = ids.numpy()
        with self._gpu.lock:
            self._gpu.write(self._ids, 0, numbers)
            submission = self._gpu.submit(self._commands.recorded([self._copy]))
            raw = self._gpu.read(self._result, 4 * len(ids) * self._width, submission)
        return torch.from_numpy(raw.view(np.float32)).view(len(ids), self._width)
