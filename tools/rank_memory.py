"""What each rank of a shared model takes of this machine's memory, against its share: `--tp` on a CPU.

    python tools/rank_memory.py CHECKPOINT --tp 2 4 --weights auto packed --output FILE

A rank is loaded, a prompt goes through all of it, and its resident memory is read, less that of a rank of
tiny-omni, which is Python and torch. ``planned`` is what `lluda plan --tp` says of weights, KV cache and activations.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import torch

from lluda.bench.machine import read_machine
from lluda.engine.loading.load_options import LoadOptions
from lluda.engine.loading.loading import load_network, make_runner
from lluda.engine.loading.model_files import ModelFiles
from lluda.engine.parallel.leader import Leader
from lluda.engine.parallel.setup import CheckpointSetup
from lluda.parameters import Share
from lluda.weights.bundled import tiny_omni_folder

_PROMPT = 32


def resident_of_ranks(checkpoint: str, ranks: int, weights: str = "auto") -> list[int]:
    """Bytes resident of each rank but the first, with the pages of the file that it looks at."""
    options = LoadOptions(
        tensor_parallel=ranks, weights=weights, threads=1, max_context=512, max_sequences=1, prefill_chunk=_PROMPT
    )
    files = ModelFiles.find(checkpoint)
    leader = Leader(CheckpointSetup(checkpoint, options), ranks)
    try:
        network, _ = load_network(files, options.on_rank(), share=Share(0, ranks), join=leader.join)
        runner = make_runner(files, options, network, leader)
        with torch.inference_mode():
            runner.prefill(list(range(_PROMPT)), runner.new_cache())
        return [_resident(number) for number in leader.pids]
    finally:
        leader.close()


def measure(checkpoint: str, ranks: int, weights: str = "auto") -> dict[str, Any]:
    """The row of one model."""
    options = LoadOptions(
        tensor_parallel=ranks, weights=weights, max_context=512, max_sequences=1, prefill_chunk=_PROMPT
    )
    plan = ModelFiles.find(checkpoint).plan(options, rank=1)
    nothing = max(resident_of_ranks(str(tiny_omni_folder()), ranks))
    taken = [resident - nothing for resident in resident_of_ranks(checkpoint, ranks, weights)]
    return {
        "model": Path(checkpoint).name,
        "ranks": ranks,
        "weights": weights,
        "share_bytes": plan.weight_bytes,
        "planned_bytes": plan.total,
        "taken_bytes": taken,
        "python_and_torch_bytes": nothing,
    }


def _resident(number: int) -> int:
    """Of a process."""
    return psutil.Process(number).memory_info().rss


def main() -> None:
    """Print the rows as JSON, and write them where they are wanted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--tp", type=int, nargs="+", default=[2])
    parser.add_argument("--weights", nargs="+", default=["auto"])
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    rows = [measure(args.checkpoint, ranks, weights) for weights in args.weights for ranks in args.tp]
    text = json.dumps({"machine": asdict(read_machine(["torch", "psutil"])), "rows": rows}, indent=1)
    if args.output:
        args.output.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
