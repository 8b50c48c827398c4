"""The ranks that share a model, each with a slice of its matrices, and what they tell each other while they compute.

Every rank calls the same methods in the same order with tensors of the same shapes.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, distributed

_all_gather = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor
"""The name since torch 2.13, and the one before, which that warns of."""


class Group(Protocol):
    """``ranks`` of them; ``rank`` is this one's number."""

    rank: int
    ranks: int

    def sum(self, x: Tensor) -> Tensor:
        """The sum of every rank's ``x``, the same bits on all; may be ``x``, changed in place."""

    def side_by_side(self, x: Tensor) -> Tensor:
        """``x [rows, n]`` of every rank, in their order: ``[rows, ranks * n]``."""

    def from_first(self, x: Tensor) -> Tensor:
        """``x`` of rank 0; may be ``x``, changed in place."""

    def abort(self) -> None:
        """Let go of what waits on this device for a rank that is gone; from any thread. Its results mean nothing."""


class ProcessGroup:
    """The processes that `torch.distributed` knows (its default group), by its own collectives."""

    def __init__(self) -> None:
        self.rank, self.ranks = distributed.get_rank(), distributed.get_world_size()

    def sum(self, x: Tensor) -> Tensor:
        """See `Group.sum`."""
        x = x.contiguous()
        distributed.all_reduce(x)
        return x

    def side_by_side(self, x: Tensor) -> Tensor:
        """See `Group.side_by_side`."""
        x = x.contiguous()
        rows, width = x.shape
        parts = torch.empty(self.ranks * rows, width, dtype=x.dtype, device=x.device)
        _all_gather(parts, x)
        return parts.view(self.ranks, rows, width).transpose(0, 1).reshape(rows, -1)

    def from_first(self, x: Tensor) -> Tensor:
        """See `Group.from_first`."""
        x = x.contiguous()
        distributed.broadcast(x, src=0)
        return x

    def abort(self) -> None:
        """See `Group.abort`. What gloo waits for fails by itself when a process ends."""
        if distributed.get_backend() == "nccl":
            distributed.distributed_c10d._abort_process_group()
