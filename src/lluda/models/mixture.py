"""Mixtures of experts on another device than the attention before them."""

from __future__ import annotations

import torch
from torch import Tensor

from lluda.backends.backend import ComputeBackend
from lluda.backends.blocks import MixtureBlock


class RemoteMixture:
    """Runs the mixture blocks of a network of the backend ``here`` on the backend ``there``: residual rows go to it and
    come back, ``4 * hidden`` bytes a row each way in a BF16 run. From a GPU they go through pinned memory, and the host
    waits once, for the rows to have come: the copy back is queued before the GPU's next work."""

    def __init__(self, here: ComputeBackend, there: ComputeBackend) -> None:
        self._here, self._there = here, there
        self._pinned = torch.empty(0)

    def __call__(self, x: Tensor, block: MixtureBlock) -> Tensor:
        """Residual rows ``[rows, hidden]`` (may be changed in place) -> the same, on the same device."""
        if x.device.type == "cpu":
            return self._rows(x, block).to(x.device)
        rows = self._pinned_buffer(x)
        rows.copy_(x, non_blocking=True)
        self._here.host_callback(lambda: rows.copy_(self._rows(rows, block)))
        return x.copy_(rows, non_blocking=True)

    def _rows(self, x: Tensor, block: MixtureBlock) -> Tensor:
        with self._there.single_threaded_torch():
            return self._there.mixture_block(x.to(self._there.device), block)

    def _pinned_buffer(self, x: Tensor) -> Tensor:
        """Pinned memory for ``x``. It is written by copies of one stream, or by the host after waiting for that; a
        captured step keeps its own."""
        if len(self._pinned) < len(x):
            self._pinned = self._here.pinned(x.shape, x.dtype)
        return self._pinned[: len(x)]
