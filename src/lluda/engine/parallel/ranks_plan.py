"""The memory of all ranks: what the first takes, and the others beside it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lluda.backends import memory_available
from lluda.engine.loading.memory_plan import PlanRow
from lluda.engine.parallel.ranks import ranks_here

if TYPE_CHECKING:
    from lluda.engine.loading.load_options import LoadOptions
    from lluda.engine.loading.memory_plan import MemoryPlan
    from lluda.engine.loading.model_files import ModelFiles


def with_other_ranks(plan: MemoryPlan, files: ModelFiles, options: LoadOptions) -> MemoryPlan:
    """``plan``, of the first of ``options.tensor_parallel`` ranks, and a row for each other on this machine: of GPUs
    it has its own, a CPU they share."""
    rows, available = [], dict(plan.available)
    for rank in range(1, ranks_here(options.tensor_parallel)):
        device = f"cuda:{rank}" if options.device == "cuda" else options.device
        rows.append(PlanRow(f"rank {rank}", 0, files.plan(options, rank=rank).total, device))
        available.setdefault(device, memory_available(device))
    return replace(plan, ranks=tuple(rows), available=available)
