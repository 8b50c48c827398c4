"""``lluda plan``: what a model will take, by component, before anything is loaded."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from lluda.cli import options
from lluda.cli.console import plain_interrupt


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    options.add_model_argument(parser)
    options.add_unknown_config(parser)
    parser.add_argument("--speech", action="store_true", help="count what an Omni model speaks with too")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    options.add_memory(parser)


def run(args: argparse.Namespace) -> int:
    """Print the plan; exit 2 (OutOfMemory) if it does not fit what is available."""
    path = options.find_model(options.model_argument(args), args)
    with plain_interrupt():
        from lluda.engine.loading import LoadOptions, ModelFiles

    files = ModelFiles.find(path, allow_unknown_config=args.allow_unknown_config)
    plan = files.plan(LoadOptions(**options.load_options(args)), speech=args.speech)
    if args.json:
        totals = {"parameters": plan.parameters, "weight_bytes": plan.weight_bytes, "total": plan.total}
        options.print_json({"model": str(files.path), **asdict(plan), **totals, "fits": plan.total <= plan.available})
    else:
        print(f"{files.path.name}: {files.config.model_type}, {plan.dtype} on {plan.device}")
        print(f"{'component':<32}{'parameters':>18}{'bytes':>18}")
        for row in (*plan.weights, plan.kv_cache, plan.activations):
            parameters = f"{row.parameters:,}" if row.parameters else ""
            print(f"{row.component:<32}{parameters:>18}{row.nbytes:>18,}")
        print(f"{'total':<32}{plan.parameters:>18,}{plan.total:>18,}")
        print(f"{'available':<32}{'':>18}{plan.available:>18,}")
    plan.require_fit()
    return 0
