"""``lluda validate``: does lluda compute what the reference computes? Exit code 1 if a threshold fails."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lluda.cli import options
from lluda.cli.console import say
from lluda.cli.heavy_imports import heavy_imports
from lluda.cli.plot import plot_validation, require_plot
from lluda.cli.report import add_report, publish, require_writable
from lluda.cli.verbs.ask import add_media, media_content
from lluda.errors import InvalidRequest
from lluda.models.components import COMPONENTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from rich.table import Table

    from lluda.engine.loading.load_options import LoadOptions
    from lluda.engine.loading.model_files import ModelFiles
    from lluda.evaluation.inputs import ValidationInput
    from lluda.evaluation.parity import GreedyParity, StageParity
    from lluda.evaluation.validation import ComponentParity, Validation, ValidationRequest

_DEFAULT_TOKENS = 64
_TABLE_WIDTH = 118
_ONLY_HELP = (
    f"of an Omni model one component alone (repeatable; what it needs of the others lluda still computes): "
    f"{', '.join(component.name for component in COMPONENTS)}"
)
_COLUMNS = (
    *("stage", "max |error|", "mean |error|", "max / range", "lluda-f64", "reference-f64", "ratio", "argmax"),
    "diverges at",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    options.add_model(parser, required=False)
    parser.add_argument(
        "--reference", default="transformers",
        help="transformers (default), llama.cpp for a .gguf, or mistralrs for a safetensors folder (greedy tokens and "
        "their likeliest log-probabilities)",
    )  # fmt: skip
    parser.add_argument(
        "--tokens", type=int, metavar="N", help=f"ids to run (default {_DEFAULT_TOKENS}; of a --prompt: the first N)"
    )
    parser.add_argument("--prompt", metavar="TEXT", help="run this text (default: random ids; for llama.cpp a text)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random ids (default 0)")
    parser.add_argument("--greedy", type=int, default=16, metavar="N", help="greedy tokens to compare (default 16)")
    parser.add_argument("--cached", action="store_true", help="token by token through the cache, not in one prefill")
    parser.add_argument("--no-float64", action="store_true", help="leave out the distance to a float64 run")
    parser.add_argument("--only", action="append", default=[], metavar="COMPONENT", help=_ONLY_HELP)
    parser.add_argument("--frames", type=int, metavar="N", help="frames of speech an Omni model makes (default 40)")
    parser.add_argument("--speaker", metavar="NAME", help="a speaker of the config (default: the checkpoint's first)")
    add_media(parser)
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the error by layer")
    add_report(parser)
    options.add_loading(parser)


def run(args: argparse.Namespace) -> int:
    """Validate, print, judge."""
    with heavy_imports():
        from lluda.engine.loading.load_options import LoadOptions
        from lluda.engine.loading.model_files import ModelFiles
        from lluda.evaluation.ladder import validate
    require_writable(args.output)
    if args.plot:
        require_plot(args.plot)
    files = ModelFiles.find(options.model_or_demo(args.model), allow_unknown_config=args.allow_unknown_config)
    load = LoadOptions(**options.load_options(args))
    validation = validate(files, load, _request(args, load, files), say)
    plot = (lambda: plot_validation(validation, args.plot)) if args.plot else None
    publish(args, validation.document(), lambda: _print_validation(validation), plot)
    return _judge(validation)


def _request(args: argparse.Namespace, load: LoadOptions, files: ModelFiles) -> ValidationRequest:
    from lluda.evaluation.validation import DEFAULT_FRAMES, ValidationRequest

    if files.config.omni is None and (args.only or args.media or args.speaker or args.frames is not None):
        raise InvalidRequest(f"{files.name} is a text model: --only, --frames, --speaker and media are for Omni models")
    if args.tokens is not None and args.tokens < 1:
        raise InvalidRequest(f"--tokens must be at least 1, not {args.tokens}")
    return ValidationRequest(
        given=_omni_input(args, files) if files.config.omni else _text_input(args, files),
        reference=args.reference,
        only=tuple(args.only),
        rows_per_step=1 if args.cached else load.prefill_rows,
        greedy=args.greedy,
        frames=DEFAULT_FRAMES if args.frames is None else args.frames,
        speaker=args.speaker,
        float64=not args.no_float64,
    )


def _text_input(args: argparse.Namespace, files: ModelFiles) -> ValidationInput:
    """A prompt, random ids or, for llama.cpp, the built-in text."""
    from lluda.evaluation.inputs import SAMPLE_TEXT, ValidationInput, random_ids

    if args.prompt is not None:
        return ValidationInput(_encode(files, args.prompt)[: args.tokens], "a prompt")
    if args.reference == "llama.cpp":
        return ValidationInput(_encode(files, SAMPLE_TEXT)[: args.tokens], "the built-in text")
    ids = random_ids(files.config.text.vocab_size, args.tokens or _DEFAULT_TOKENS, args.seed)
    return ValidationInput(ids, f"random ids, seed {args.seed}")


def _omni_input(args: argparse.Namespace, files: ModelFiles) -> ValidationInput:
    """Media as given; without any and without a --prompt, synthetic ones of each kind."""
    from lluda.evaluation.inputs import omni_input, synthetic_media
    from lluda.inputs.media.media_parts import take_media

    assert files.config.omni is not None
    _, media = take_media([{"role": "user", "content": media_content(args)}])
    text = None if args.prompt is None else _encode(files, args.prompt)[: args.tokens]
    synthetic = not media and text is None
    return omni_input(
        files.config.omni,
        files.config.text.vocab_size,
        media=synthetic_media(args.seed) if synthetic else media,
        text=text,
        tokens=args.tokens or _DEFAULT_TOKENS,
        seed=args.seed,
        source="a prompt" if text else f"random ids, seed {args.seed}{', synthetic media' if synthetic else ''}",
    )


def _encode(files: ModelFiles, text: str) -> tuple[int, ...]:
    from lluda.cli.text_input import read_text_argument
    from lluda.engine.loading.tokenizer import load_tokenizer

    text = read_text_argument(text, raw=True)
    return tuple(load_tokenizer(files.source).encode(text, allow_special=False))


def _judge(validation: Validation) -> int:
    """Name the thresholds on stderr; 1 if one failed."""
    for threshold in validation.thresholds:
        say(threshold.describe())
    if validation.passed is None:
        say("not judged: bf16's threshold needs the float64 run that --no-float64 left out")
    return 1 if validation.passed is False else 0


def _print_validation(validation: Validation) -> None:
    """A table for each component, and the first stage that diverges."""
    console, model, request = _console(), validation.model, validation.request
    console.print(f"{model['name']}: {model['model_type']}, {model['parameters']:,} parameters, {validation.dtype}")
    media = ", ".join(["", *(part.kind for part in request.given.media)])
    tokens = f"{validation.rows} tokens " if validation.rows else ""
    mode = f", {request.mode(validation.rows)}" if validation.rows else ""
    console.print(f"{tokens}({request.given.source}{media}){mode}, against {request.reference}")
    for component in validation.components:
        console.print(f"\n{component.component}")
        console.print(_table(component.stages))
        for line in _notes(component, request.reference):
            console.print(line)
    divergence = validation.first_divergence
    where = (
        f"{divergence[0].component} {divergence[1].stage}, row {divergence[1].first_divergence}" if divergence else ""
    )
    console.print(f"\nfirst divergence (beyond {validation.tolerance:g} of a row's range): {where or 'nowhere'}")


def _notes(component: ComponentParity, reference: str) -> list[str]:
    """What stands below a component's table."""
    found = []
    if component.distribution:
        parts = component.distribution
        kl = f"mean KL {parts.mean_kl:.3g} nats, largest {parts.max_kl:.3g}"
        found.append(f"{kl}; correlation {parts.correlation:.6f}")
    if component.greedy:
        found.append(_greedy(component, component.greedy, reference))
    return found + [f"corrected expectation: {text}" for text in component.corrections]


def _console() -> Console:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else _TABLE_WIDTH, highlight=False)


def _table(stages: Sequence[StageParity]) -> Table:
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in _COLUMNS:
        table.add_column(name, justify="left" if name == "stage" else "right", no_wrap=True)
    for stage in stages:
        table.add_row(*_row(stage))
    return table


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


def _greedy(component: ComponentParity, greedy: GreedyParity, reference: str) -> str:
    what = "code" if component.component in ("talker", "code_predictor") else "token"
    if greedy.first_divergence is None:
        return f"greedy: all {greedy.tokens} {what}s equal"
    ours, theirs = (
        "" if margin is None else f" (by {margin:.3g})" for margin in (greedy.lluda_margin, greedy.reference_margin)
    )
    return (
        f"greedy: {what} {greedy.first_divergence} of {greedy.tokens} differs: lluda {greedy.lluda_token}{ours}, "
        f"{reference} {greedy.reference_token}{theirs}"
    )
