"""``lluda bench --serve URL``: what a server's callers see, and how much of the engine's speed reaches them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lluda.cli.heavy_imports import heavy_imports
from lluda.cli.report import publish
from lluda.errors import InvalidRequest

if TYPE_CHECKING:
    from lluda.bench.runner import Settings
    from lluda.bench.server.load import Load
    from lluda.bench.server.report import ServerReport


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """What belongs to ``--serve``."""
    group = parser.add_argument_group("a server under load (of the options above -m, --prompt, --gen, --timeout count)")
    group.add_argument(
        "--serve", metavar="URL", help="measure what callers of this server see; -m adds the engine alone"
    )
    group.add_argument(
        "--concurrency", default="1,2,4,8,16,32", metavar="N,…", help="callers at once (default 1,2,4,8,16,32)"
    )
    group.add_argument("--requests", type=int, default=4, metavar="N", help="of each caller (default 4)")
    group.add_argument(
        "--turns",
        default="",
        metavar="S,…",
        help="measure turns of so many seconds over /v1/realtime instead: said in real time until the server finds "
        "their end (said), or a key is let go of (held), and sent as a recording (sent)",
    )
    group.add_argument("--api-key-file", type=Path, metavar="F", help="its first line is the server's key")


def run_server(
    args: argparse.Namespace, concurrency: tuple[int, ...], prompt: int, turns: tuple[int, ...],
    engine: Settings | None, progress: Callable[[str, int, int], None],
) -> int:  # fmt: skip
    """Measure and report; 1 if a request failed. ``engine``: how to measure the model of ``-m`` without a server."""
    with heavy_imports():
        from lluda.bench.server.load import Load
        from lluda.bench.server.report import print_server_report
    load = Load(
        concurrency=concurrency, requests=args.requests, prompt=prompt, generate=args.gen,
        turns=turns, speech=not args.no_speech, timeout=args.timeout,
    )  # fmt: skip
    report = _measured(args, load, engine, progress)
    publish(args, report.to_json(), lambda: print_server_report(report))
    return 1 if report.failed else 0


def _measured(
    args: argparse.Namespace, load: Load, engine: Settings | None, progress: Callable[[str, int, int], None]
) -> ServerReport:
    from lluda.bench.machine import read_machine
    from lluda.bench.runner import run_bench
    from lluda.bench.server.call import Address, get
    from lluda.bench.server.figures import figures
    from lluda.bench.server.load import measure, served_model
    from lluda.bench.server.report import ServerReport

    address = Address.of(args.serve, _key(args.api_key_file))
    rounds = tuple(figures(one) for one in measure(address, load, progress))
    return ServerReport(
        address=args.serve,
        model=served_model(address, load.timeout),
        version=get(address, "/version", load.timeout),
        machine=read_machine(()),
        load=load,
        rounds=rounds,
        engine=run_bench(str(args.model), engine, progress) if engine else None,
    )


def _key(path: Path | None) -> str | None:
    if path is None:
        return None
    lines = path.read_text().split()
    if not lines:
        raise InvalidRequest(f"{path}: holds no key; write one into its first line")
    return lines[0]
