"""``lluda plan``: what a model will take, by component, and how fast it would be, before anything is loaded."""

from __future__ import annotations

import argparse
import re
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from lluda.cli import options, plan_speed
from lluda.cli.heavy_imports import heavy_imports
from lluda.cli.report import add_report, publish, require_writable
from lluda.errors import InvalidRequest
from lluda.models.components import BY_NAME

if TYPE_CHECKING:
    from lluda.engine.loading.memory_plan import MemoryPlan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    options.add_model_argument(parser)
    options.add_unknown_config(parser)
    parser.add_argument("--speech", action="store_true", help="count what an Omni model speaks with too")
    parser.add_argument("--image", metavar="WxH", help="count a picture of so many pixels in the prompt")
    parser.add_argument("--audio", type=float, metavar="S", help="count so many seconds of sound in the prompt")
    parser.add_argument(
        "--only",
        metavar="COMPONENT",
        help="count one component by itself: thinker, vision_encoder (or thinker.visual), talker, code2wav, …",
    )
    plan_speed.add_speed(parser)
    add_report(parser)
    options.add_memory(parser)
    options.add_ranks(parser)
    options.add_rope_scaling(parser)


def run(args: argparse.Namespace) -> int:
    """Print the plan; exit 2 (OutOfMemory) if it does not fit what is available."""
    require_writable(args.output)
    predicts = plan_speed.is_wanted(args)
    path = options.find_model(options.model_argument(args), args, weights=False)
    with heavy_imports():
        from lluda.engine.loading.load_options import LoadOptions
        from lluda.engine.loading.media_plan import MediaLoad
        from lluda.engine.loading.model_files import ModelFiles
        from lluda.engine.parallel.limits import require_shareable
        from lluda.engine.parallel.ranks_plan import with_other_ranks

    files = ModelFiles.find(path, allow_unknown_config=args.allow_unknown_config, rope_scaling=args.rope_scaling)
    media = MediaLoad(_pixels(args.image), args.audio) if args.image or args.audio is not None else None
    load = LoadOptions(**options.load_options(args))
    plan = files.plan(load, speech=args.speech or args.only is not None, media=media)
    if load.tensor_parallel > 1:
        require_shareable(files, load)
        plan = with_other_ranks(plan, files, load)
    if args.only is not None:
        plan = _only(plan, args.only)
    totals = {"parameters": plan.parameters, "weight_bytes": plan.weight_bytes, "total": plan.total}
    speeds = plan_speed.predict(args, files) if predicts else {}
    document = {
        "model": str(files.path),
        "max_context": files.config.text.max_context,
        **asdict(plan),
        **totals,
        "fits": plan.fits,
    }
    if speeds:
        document["speed"] = {name: [asdict(row) for row in rows] for name, rows in speeds.items()}
    text, devices = files.config.text, ", ".join(plan.available)
    longest = f"up to {text.max_context} positions{text.rope.describe()}"
    heading = f"{files.name}: {files.config.model_type}, {plan.dtype} on {devices}, {longest}"

    def show() -> None:
        _print_table(plan, heading)
        if speeds:
            measured = f"measured on {devices}" if args.bandwidth is None else "for the machine named"
            plan_speed.print_speeds(speeds, measured)

    publish(args, document, show)
    plan.require_fit()
    return 0


def _pixels(size: str | None) -> tuple[int, int] | None:
    """Height and width of ``1024x768`` (width first, as people say it)."""
    if size is None:
        return None
    numbers = re.fullmatch(r"(\d{1,6})x(\d{1,6})", size)
    if numbers is None:
        raise InvalidRequest(f"--image takes width and height in pixels, as 1024x768, not {size!r:.40}")
    return int(numbers[2]), int(numbers[1])


def _print_table(plan: MemoryPlan, heading: str) -> None:
    """A line each; with more than one device also where it is, and each device's own sum."""
    print(heading)
    apart = len(plan.available) > 1

    def line(name: str, count: int, nbytes: int, device: str) -> None:
        print(f"{name:<32}{f'{count:,}' if count else '':>18}{nbytes:>18,}" + (f"  {device}" if apart else ""))

    print(f"{'component':<32}{'parameters':>18}{'bytes':>18}" + ("  device" if apart else ""))
    for row in plan.rows:
        line(row.component, row.parameters, row.nbytes, row.device)
    line("total", plan.parameters, plan.total, "all")
    for device, available in plan.available.items():
        if apart:
            line("total", 0, plan.total_on(device), device)
        line("available", 0, available, device)


def _only(plan: MemoryPlan, component: str) -> MemoryPlan:
    """The plan of one component, as ``--place`` or the plan calls it, and the parts of it; the KV cache is the text
    decoder's."""
    component = BY_NAME[component].plan_name if component in BY_NAME else component
    names = {row: row.component.split(" / ")[0] for row in plan.weights}
    weights = tuple(row for row, name in names.items() if f"{name}.".startswith(f"{component}."))
    if not weights:
        raise InvalidRequest(f"component {component!r:.60} is not one of {', '.join(dict.fromkeys(names.values()))}")
    kv_cache = plan.kv_cache if component in ("thinker", "text") else replace(plan.kv_cache, nbytes=0)
    speech = tuple(row for row in plan.speech if row.component.startswith(component))
    return replace(plan, weights=weights, kv_cache=kv_cache, speech=speech, media=(), ranks=())
