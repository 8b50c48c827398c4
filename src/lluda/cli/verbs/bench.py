"""``lluda bench``: speed and memory, side by side with peers in the same call."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lluda.cli import options
from lluda.cli.bench_server import add_server_arguments, run_server
from lluda.cli.heavy_imports import heavy_imports
from lluda.cli.plot import plot_bench, require_plot
from lluda.cli.report import add_report, publish, require_writable
from lluda.errors import InvalidRequest

if TYPE_CHECKING:
    from lluda.bench.runner import Settings

_EXIT_CODES = (
    "exit code 1: an engine failed (its last line is in the report); a peer that is not installed is no failure"
)
_STREAM_STEPS = 32
_SYNTH_HELP = (
    "measure this machine without a checkpoint: the network of CONFIG_DIR/config.json with random weights made on the "
    "device: prefill, decode and, of an Omni model, speech, audio and a turn with both "
    "(--cache-dir does not apply; --against transformers alone)"
)
_DEVICE_HELP = "cpu, cuda, cuda:1, … or auto for lluda and transformers (default cpu, with --synth cuda)"
_MODEL_TESTS = ("load", "ttft", "pp", "tg", "memory", "streams", "products")
_SHARED_TESTS = ("pp", "tg", "streams", "turn")
_TESTS_HELP = (
    f"which (default {','.join(_MODEL_TESTS)}, with --synth pp,tg,products and, of an Omni model, speech,audio,turn; "
    "products: how fast lluda multiplies, by which other rows are predicted; callers: requests to the engine that "
    "arrive one after the other; prompts: of lengths that were never met, behind a cached one, and answers far behind; "
    "listen: how soon an Omni model answers what it heard while it was spoken, and what is sent at once)"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.epilog = _EXIT_CODES
    measured = parser.add_mutually_exclusive_group()
    measured.add_argument("-m", "--model", metavar="MODEL", help="a folder, a .gguf file, or org/name")
    measured.add_argument("--synth", type=Path, metavar="CONFIG_DIR", help=_SYNTH_HELP)
    options.add_unknown_config(parser)
    parser.add_argument("--no-speech", action="store_true", help="with --synth: without an Omni model's speech")
    parser.add_argument(
        "--against", default="", metavar="PEERS", help="transformers, llama.cpp, mistralrs: any of them, by comma"
    )
    parser.add_argument("--formats", default="BF16", metavar="LIST", help="lluda's weight formats (default BF16)")
    parser.add_argument("--backend", default="auto", help="lluda's backend (default auto)")
    parser.add_argument("--device", help=_DEVICE_HELP)
    parser.add_argument("--tests", metavar="LIST", help=_TESTS_HELP)
    parser.add_argument("--prompt", default="128,512", metavar="N,…", help="prefill lengths (default 128,512)")
    parser.add_argument("--gen", type=int, default=128, metavar="N", help="tokens decoded by tg (default 128)")
    parser.add_argument("--streams", default="1,2,4,8", metavar="N,…", help="sequences together (default 1,2,4,8)")
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="rounds of all engines (default 5)")
    parser.add_argument("--threads", type=int, metavar="N", help="for every engine (default: all cores)")
    parser.add_argument("--timeout", type=float, default=900, metavar="S", help="seconds for a turn (default 900)")
    parser.add_argument("--cache-dir", type=Path, metavar="DIR", help="where copies for peers are stored")
    options.add_ranks(parser)
    add_report(parser)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a bar chart (.png)")
    add_server_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Measure and report; 1 if an engine failed."""
    with heavy_imports():
        from lluda.bench.runner import run_bench
        from lluda.bench.table import print_report
    require_writable(args.output)
    if args.serve:
        return _run_server(args)
    if not (args.model or args.synth):
        raise InvalidRequest("bench needs what to measure: -m MODEL, --synth CONFIG_DIR or --serve URL")
    if args.plot:
        require_plot(args.plot)
    settings = _settings(args)
    with _turn_progress() as progress:
        report = run_bench(str(args.synth or args.model), settings, progress)
    plot = (lambda: plot_bench(report, args.plot)) if args.plot else None
    publish(args, report.to_json(), lambda: print_report(report), plot)
    return 1 if report.failed else 0


def _run_server(args: argparse.Namespace) -> int:
    if args.synth or args.plot or args.against:
        raise InvalidRequest("--serve measures a running server; leave --synth, --plot and --against out")
    concurrency, prompts = _numbers("--concurrency", args.concurrency), _numbers("--prompt", args.prompt)
    turns, engine = _numbers("--turns", args.turns), None
    if args.model:
        settings = _settings(args)
        engine = replace(settings, plan=replace(settings.plan, tests=("callers",), streams=concurrency))
    with _turn_progress() as progress:
        return run_server(args, concurrency, prompts[0], turns, engine, progress)


def _settings(args: argparse.Namespace) -> Settings:
    from lluda.bench.process.job import Plan
    from lluda.bench.runner import Settings

    if args.tensor_parallel > 1 and args.tests is None:
        raise InvalidRequest(
            f"--tp measures the text model: say which with --tests, of {', '.join(_SHARED_TESTS)}, turn"
        )
    tests = _MODEL_TESTS if args.tests is None else _names(args.tests)
    if args.synth and args.tests is None:
        tests = ("pp", "tg", "audio", "products")
        if not args.no_speech:
            tests += ("speech", "turn")
    return Settings(
        random=args.synth is not None,
        against=_names(args.against),
        formats=_names(args.formats),
        backend=args.backend,
        device=args.device or ("cuda" if args.synth else "cpu"),
        plan=Plan(
            tests=tests,
            prompts=_numbers("--prompt", args.prompt),
            generate=args.gen,
            streams=_numbers("--streams", args.streams),
            stream_steps=args.gen if args.synth else max(1, min(args.gen, _STREAM_STEPS)),
        ),
        repeat=args.repeat,
        threads=args.threads,
        tensor_parallel=args.tensor_parallel,
        timeout=args.timeout,
        cache_dir=args.cache_dir,
        allow_unknown_config=args.allow_unknown_config,
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(dict.fromkeys(int(part) for part in _names(text)))
    except ValueError:
        raise InvalidRequest(f"{option} must be whole numbers with commas between, not {text!r:.80}") from None


@contextmanager
def _turn_progress() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on stderr, drawn once a second: it must not take time from what is measured."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    shown = Progress(*columns, console=console, transient=True, disable=not console.is_terminal, refresh_per_second=1)
    with shown as bar:
        task = bar.add_task("starting", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)
