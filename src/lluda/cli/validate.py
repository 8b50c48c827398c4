"""``lluda validate``: does lluda compute what the reference computes? A table, or JSON; exit code 1 if a bar fails."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lluda.cli import options
from lluda.errors import InvalidRequest

if TYPE_CHECKING:
    from lluda.engine.loading import ModelFiles
    from lluda.evaluation.parity import GreedyParity, StageParity
    from lluda.evaluation.validation import Validation, ValidationRequest

_DEFAULT_TOKENS = 64
_TABLE_WIDTH = 118
_COLUMNS = (
    *("stage", "max |error|", "mean |error|", "max / range", "lluda-f64", "reference-f64", "ratio", "argmax"),
    "diverges at",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    options.add_model(parser, required=False)
    parser.add_argument("--reference", default="transformers", help="transformers (default), or llama.cpp for a .gguf")
    parser.add_argument(
        "--tokens", type=int, metavar="N", help=f"ids to run (default {_DEFAULT_TOKENS}; of a --prompt: the first N)"
    )
    parser.add_argument("--prompt", metavar="TEXT", help="run this text (default: random ids; for llama.cpp a text)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random ids (default 0)")
    parser.add_argument("--greedy", type=int, default=16, metavar="N", help="greedy tokens to compare (default 16)")
    parser.add_argument("--cached", action="store_true", help="token by token through the cache, not in one prefill")
    parser.add_argument("--no-float64", action="store_true", help="leave out the distance to a float64 run")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the error by layer")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of the table")
    options.add_loading(parser)


def run(args: argparse.Namespace) -> int:
    """Validate, print, judge."""
    from lluda.engine.loading import LoadOptions, ModelFiles
    from lluda.evaluation.parity_plot import plot_parity, require_plot
    from lluda.evaluation.validation_run import validate

    if args.plot:
        require_plot(args.plot)
    files = ModelFiles.find(options.model_or_demo(args.model), allow_unknown_config=args.allow_unknown_config)
    load = LoadOptions(**options.load_options(args))
    validation = validate(files, load, _request(args, files), lambda text: print(f"lluda: {text}", file=sys.stderr))
    if args.plot:
        plot_parity(validation, args.plot)
    if args.json:
        options.print_json(validation.document())
    else:
        _print_table(validation)
    return _judge(validation)


def _request(args: argparse.Namespace, files: ModelFiles) -> ValidationRequest:
    from lluda.evaluation.validation import ValidationRequest
    from lluda.evaluation.validation_run import random_ids

    if args.tokens is not None and args.tokens < 1:
        raise InvalidRequest(f"--tokens must be at least 1, not {args.tokens}")
    text = args.prompt
    if text is None and args.reference == "llama.cpp":
        from lluda.evaluation.sample_text import SAMPLE_TEXT

        text = SAMPLE_TEXT
    if text is None:
        ids = random_ids(files.config.text.vocab_size, args.tokens or _DEFAULT_TOKENS, args.seed)
        source = f"random ids, seed {args.seed}"
    else:
        ids = _encode(files, text)[: args.tokens]
        source = "a prompt" if args.prompt is not None else "the built-in text"
    return ValidationRequest(
        ids=ids,
        source=source,
        reference=args.reference,
        rows_per_step=1 if args.cached else args.prefill_chunk,
        greedy=args.greedy,
        float64=not args.no_float64,
    )


def _encode(files: ModelFiles, text: str) -> tuple[int, ...]:
    from lluda.cli.generate import read_prompt
    from lluda.engine.loading import load_tokenizer

    text = read_prompt(text)
    return tuple(load_tokenizer(files.path).encode(text, allow_special=False))


def _judge(validation: Validation) -> int:
    """Name the bars on stderr; 1 if one failed."""
    for bar in validation.bars:
        print(f"lluda: {bar.describe()}", file=sys.stderr)
    if validation.passed is None:
        print("lluda: not judged: bf16's bar needs the float64 run that --no-float64 left out", file=sys.stderr)
    return 1 if validation.passed is False else 0


def _print_table(validation: Validation) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else _TABLE_WIDTH, highlight=False)
    request, model = validation.request, validation.model
    console.print(f"{model['name']}: {model['model_type']}, {model['parameters']:,} parameters, {validation.dtype}")
    console.print(f"{len(request.ids)} tokens ({request.source}), {request.mode}, against {request.reference}")
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in _COLUMNS:
        table.add_column(name, justify="left" if name == "stage" else "right", no_wrap=True)
    for stage in validation.stages:
        table.add_row(*_row(stage))
    console.print(table)
    console.print(f"errors beyond {validation.tolerance:g} of a position's range count as divergence")
    if validation.distribution:
        parts = validation.distribution
        console.print(
            f"mean KL {parts.mean_kl:.3g} nats, largest {parts.max_kl:.3g}; correlation {parts.correlation:.6f}"
        )
    if validation.greedy:
        console.print(_greedy(validation.greedy, request.reference))


def _row(stage: StageParity) -> list[str]:
    distance = stage.error_to_float64
    ratio = distance.ratio if distance else None
    return [
        stage.stage,
        f"{stage.max_abs_error:.3g}",
        f"{stage.mean_abs_error:.3g}",
        f"{stage.relative_error:.2e}",
        f"{distance.lluda:.3g}" if distance else "-",
        f"{distance.reference:.3g}" if distance else "-",
        f"{ratio:.3f}" if ratio is not None else "-",
        f"{stage.argmax_agreement:.4f}",
        "-" if stage.first_divergence is None else str(stage.first_divergence),
    ]


def _greedy(greedy: GreedyParity, reference: str) -> str:
    if greedy.first_divergence is None:
        return f"greedy: all {greedy.tokens} tokens equal"
    return (
        f"greedy: token {greedy.first_divergence} of {greedy.tokens} differs: lluda {greedy.lluda_token} "
        f"(by {greedy.lluda_margin:.3g}), {reference} {greedy.reference_token} (by {greedy.reference_margin:.3g})"
    )
