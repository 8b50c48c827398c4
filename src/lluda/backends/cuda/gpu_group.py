"""The ranks of a model on GPUs of one machine that see each other's memory: sums of a few rows without NCCL."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed import _symmetric_memory, distributed_c10d

from lluda.backends.cuda.kernels.triton_group_sum import BLOCK, add_sum
from lluda.backends.group import Group

_log = logging.getLogger(__name__)

ROOM = 64 * 8192
"""Numbers of one sum at most: a captured step's rows of the widest models. More are NCCL's."""


class GpuGroup:
    """`Group` over another one, for what it does not do itself. ``blank`` and `add` are for branches of a few rows:
    a block adds to zeros, and the sum of all ranks' is added to the rows in one launch."""

    def __init__(self, group: Group, device: torch.device, *, pdl: bool) -> None:
        """All ranks at once. RuntimeError: their GPUs do not see each other's memory."""
        self._group, self._pdl = group, pdl
        self.rank, self.ranks = group.rank, group.ranks
        # NVLink's multicast is not asked for: these are addresses of plain memory.
        memory = _symmetric_memory.empty(2 * self.ranks * ROOM, dtype=torch.int64, device=device)
        handle: Any = _symmetric_memory.rendezvous(memory, distributed_c10d._get_default_group())
        self._inbox = memory.zero_().view(2, self.ranks, ROOM)
        self._peers = torch.tensor(list(handle.buffer_ptrs), dtype=torch.int64, device=device)
        self._epochs = torch.zeros(-(-ROOM // BLOCK), dtype=torch.int32, device=device)
        self._abort = torch.zeros(1, dtype=torch.int32, device=device)
        self._blank = torch.zeros(ROOM, device=device)
        self._aside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call, unused-ignore]
        torch.cuda.synchronize(device)
        distributed.barrier()  # nobody writes before all inboxes are zeros

    def takes(self, x: Tensor) -> bool:
        """Whether rows like ``x`` are few enough, and float32."""
        return x.numel() <= ROOM and x.dtype == torch.float32

    def blank(self, x: Tensor) -> Tensor:
        """Zeros of the shape of ``x``, until the next `add`."""
        return self._blank[: x.numel()].view_as(x)

    def add(self, x: Tensor, branch: Tensor) -> Tensor:
        """``x``, changed in place, and every rank's ``branch``, which becomes zeros."""
        x, branch = x.contiguous(), branch.contiguous()
        return add_sum(
            x, branch, self._inbox, self._peers, self._epochs, self._abort, rank=self.rank, pdl=self._pdl
        )  # fmt: skip

    def sum(self, x: Tensor) -> Tensor:
        """See `Group.sum`."""
        if not self.takes(x):
            return self._group.sum(x)
        return self.add(torch.zeros_like(x), x.clone())

    def side_by_side(self, x: Tensor) -> Tensor:
        """See `Group.side_by_side`."""
        return self._group.side_by_side(x)

    def from_first(self, x: Tensor) -> Tensor:
        """See `Group.from_first`."""
        return self._group.from_first(x)

    def abort(self) -> None:
        """See `Group.abort`. Copied by the device's copy engine, which waits for no kernel."""
        with torch.cuda.stream(self._aside):
            self._abort.copy_(torch.ones(1, dtype=torch.int32).pin_memory(), non_blocking=True)
        self._group.abort()


def connected(group: Group, device: torch.device, *, pdl: bool) -> Group:
    """``group``, with sums of few rows through memory that all ranks see; as it is, and said so, without."""
    try:
        return GpuGroup(group, device, pdl=pdl)
    except (RuntimeError, ImportError) as error:
        _log.warning("sums of a few rows go through NCCL, since the GPUs share no memory: %s", str(error)[:200])
        return group
