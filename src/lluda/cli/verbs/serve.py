"""``lluda serve``: the model behind the OpenAI API, on HTTP."""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from lluda.cli import options
from lluda.cli.console import byte_progress, say
from lluda.cli.heavy_imports import heavy_imports
from lluda.errors import InvalidRequest
from lluda.extras import require

if TYPE_CHECKING:
    from lluda.api.model import Model
    from lluda.serving.service import Service
    from lluda.serving.settings import Settings
    from lluda.weights.checkpoint import ModelSource

_MAX_PORT = 65535


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    options.add_model(parser, required=False)
    group = parser.add_argument_group("serving")
    group.add_argument("--host", default="127.0.0.1", metavar="H", help="address to listen on (default 127.0.0.1)")
    group.add_argument("--port", type=int, default=8000, metavar="P", help="default 8000; 0 takes a free one")
    group.add_argument(
        "--api-key-file", type=Path, metavar="F",
        help="keys that clients must have, one a line; those of LLUDA_API_KEYS count as well (default: none needed)",
    )  # fmt: skip
    group.add_argument("--served-name", action="append", default=[], metavar="NAME", help="of the model (repeatable)")
    group.add_argument(
        "--media-domains", default="", metavar="H,…", help="hosts from which media may be fetched (default: none)"
    )
    group.add_argument(
        "--allow-origin", action="append", default=[], metavar="O",
        help="web origin whose pages may ask, as https://chat.example (repeatable)",
    )  # fmt: skip
    group.add_argument(
        "--no-speech", action="store_true", help="answer in text alone; what speaks is not loaded (saves its memory)"
    )
    group.add_argument(
        "--replicas", metavar="N",
        help="so many copies of the model behind one address, by Ray Serve (docs/scaling.md); 1:4 follows the load",
    )  # fmt: skip
    group.add_argument("--max-realtime", type=int, metavar="N", help="as --limit realtime_sessions=N (default 4)")
    group.add_argument("--limit", action="append", default=[], metavar="NAME=N", help="change a limit (repeatable)")
    group.add_argument("--print-limits", action="store_true", help="print all limits, and end")
    group.add_argument(
        "--log-level", default="info", choices=("debug", "info", "warning", "error"),
        help="info (default) writes one line a request",
    )  # fmt: skip
    options.add_loading(parser)
    options.add_ranks(parser)
    options.add_rope_scaling(parser)


def run(args: argparse.Namespace) -> int:
    """Listen, load, serve until a signal."""
    require("lluda serve", "serve", "media")
    from lluda.serving.http.keys import VARIABLE, Keys
    from lluda.serving.http.listener import addresses, listen
    from lluda.serving.limits import Limits
    from lluda.serving.settings import Settings

    sessions = [] if args.max_realtime is None else [f"realtime_sessions={args.max_realtime}"]
    limits = Limits().changed([*args.limit, *sessions])
    if args.print_limits:
        print(limits.table())
        return 0
    if not 0 <= args.port <= _MAX_PORT:
        raise InvalidRequest(f"--port must be from 0 to {_MAX_PORT}, not {args.port}")
    keys = Keys.read(args.api_key_file, os.environ.get(VARIABLE, ""))
    settings = Settings(
        served_names=tuple(args.served_name),
        limits=limits,
        keys=keys,
        media_domains=tuple(args.media_domains.replace(",", " ").split()),
        allow_origins=tuple(args.allow_origin),
        speaks=not args.no_speech,
    )
    args.model = options.model_or_tiny_omni(args.model)
    source = options.find_model(args.model, args, answers=True)
    sockets = listen(args.host, args.port)
    logging.basicConfig(stream=sys.stderr, level=args.log_level.upper(), format="%(asctime)s %(levelname)s %(message)s")
    started = time.monotonic()
    if args.replicas is not None:
        return _serve_replicas(args, settings, source, sockets)
    with heavy_imports():
        from lluda import load
        from lluda.serving.server import Server

    def load_model() -> Model:
        with byte_progress("loading") as progress:
            model = load(source, progress=progress, **options.load_options(args))
        seconds = model.warm_up(settings.limits.running)
        if seconds:
            say(f"warmed up in {seconds:.1f} s: all steps of {settings.limits.running} sequences and their prompts")
        return model

    def ready(service: Service) -> None:
        model = service.model
        say(model.describe())
        for warning in model.warnings:
            say(f"warning: {warning}")
        say(service.voices.describe())
        if model.can_hear:
            say(f"semantic turns end by {_judge(model)}")
        say(f"model names: {', '.join(service.names.served)}")
        say(f"ready after {time.monotonic() - started:.1f} s; stop with Ctrl-C")

    server = Server(settings, load_model, sockets, ready)
    admitted = server.settings.limits
    say(f"listening on {' and '.join(addresses(sockets))} ({_who(args.host, keys.are_required)})")
    say(
        f"limits: {admitted.running} sequences run, {admitted.waiting} wait, {admitted.connections} connections; "
        "all: --print-limits"
    )
    return server.run()


def _serve_replicas(
    args: argparse.Namespace, settings: Settings, source: ModelSource, sockets: list[socket.socket]
) -> int:
    """Behind Ray's own sockets, at the address that was free."""
    from lluda.serving.http.listener import addresses
    from lluda.serving.replicas.plan import on_this_machine

    plan = on_this_machine(os.fspath(source), settings, options.load_options(args), args.replicas)
    require("lluda serve --replicas", "ray")
    with heavy_imports():
        from lluda.serving.replicas.local_ray import serve_here
    where, port = addresses(sockets), sockets[0].getsockname()[1]
    say(
        f"starting Ray, then {args.replicas} replicas of {args.model} with {plan.cpus:g} CPU and {plan.gpus:g} GPU each"
    )
    for one in sockets:
        one.close()
    started = time.monotonic()

    def ready() -> None:
        who = _who(args.host, settings.keys.are_required)
        say(f"ready on {' and '.join(where)} ({who}) after {time.monotonic() - started:.1f} s; stop with Ctrl-C")
        say(f"kill -USR1 {os.getpid()} restarts the replicas one after the other")

    return serve_here(plan, args.host, port, ready)


def _judge(model: Model) -> str:
    """What tells that a turn is over."""
    if model.unclear_answer is None:
        return "silence alone: the model has no one answer to what it does not understand"
    return f"what would be answered: {model.unclear_answer.text.strip()!r} begins what was not understood"


def _who(host: str, has_keys: bool) -> str:
    if has_keys:
        return "with an API key"
    alone = host in ("127.0.0.1", "::1", "localhost")
    return "no API key needed" if alone else "NO API KEY IS NEEDED: anyone who reaches this address may ask"
