"""``lluda validate``: does lluda compute what the reference computes? A table, or JSON; exit code 1 if a bar fails."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lluda.cli import options
from lluda.cli.ask import add_media, media_content
from lluda.cli.console import say
from lluda.cli.heavy_imports import heavy_imports
from lluda.cli.report import add_report, publish, require_writable
from lluda.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from rich.table import Table

    from lluda.config.omni import OmniConfig
    from lluda.engine.loading import LoadOptions, ModelFiles
    from lluda.evaluation.omni_validation import OmniRequest, OmniValidation
    from lluda.evaluation.parity import GreedyParity, StageParity
    from lluda.evaluation.validation import Validation, ValidationRequest

_DEFAULT_TOKENS = 64
_TABLE_WIDTH = 118
_ONLY_HELP = (
    "of an Omni model: audio, vision, thinker, talker, code_predictor or code2wav alone (repeatable; "
    "what it needs of the others lluda still computes)"
)
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
    parser.add_argument("--only", action="append", default=[], metavar="COMPONENT", help=_ONLY_HELP)
    parser.add_argument("--frames", type=int, metavar="N", help="frames of speech an Omni model makes (default 40)")
    parser.add_argument("--speaker", metavar="NAME", help="whose voice (default: the checkpoint's first)")
    add_media(parser)
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the error by layer")
    add_report(parser)
    options.add_loading(parser)


def run(args: argparse.Namespace) -> int:
    """Validate, print, judge."""
    with heavy_imports():
        from lluda.engine.loading import LoadOptions, ModelFiles
        from lluda.evaluation.parity_plot import plot_parity
        from lluda.evaluation.plot_file import require_plot
    require_writable(args.output)
    if args.plot:
        require_plot(args.plot)
    files = ModelFiles.find(options.model_or_demo(args.model), allow_unknown_config=args.allow_unknown_config)
    load = LoadOptions(**options.load_options(args))
    validation = _validate(files, load, args)
    plot = (lambda: plot_parity(validation, args.plot)) if args.plot else None
    publish(args, validation.document(), lambda: _print_validation(validation), plot)
    return _judge(validation)


def _validate(files: ModelFiles, load: LoadOptions, args: argparse.Namespace) -> Validation | OmniValidation:
    from lluda.evaluation.omni_run import validate_omni
    from lluda.evaluation.validation_run import validate

    if files.config.omni is not None:
        return validate_omni(files, load, _omni_request(args, load, files, files.config.omni), say)
    if args.only or args.media or args.speaker or args.frames is not None:
        raise InvalidRequest(f"{files.name} is a text model: --only, --frames, --speaker and media are for Omni models")
    return validate(files, load, _request(args, load, files), say)


def _omni_request(args: argparse.Namespace, load: LoadOptions, files: ModelFiles, omni: OmniConfig) -> OmniRequest:
    """Media as given; without any and without a --prompt, made-up ones of each kind."""
    from lluda.evaluation.omni_inputs import made_up_media, omni_input
    from lluda.evaluation.omni_validation import DEFAULT_FRAMES, OmniRequest
    from lluda.inputs.media.media_parts import take_media

    if args.reference != "transformers":
        raise InvalidRequest(f"an Omni model is held against transformers, not {args.reference!r:.40}")
    _, media = take_media([{"role": "user", "content": media_content(args)}])
    text = None if args.prompt is None else _encode(files, args.prompt)[: args.tokens]
    made_up = not media and text is None
    given = omni_input(
        omni,
        files.config.text.vocab_size,
        media=made_up_media(args.seed) if made_up else media,
        text=text,
        tokens=_DEFAULT_TOKENS if args.tokens is None else args.tokens,
        seed=args.seed,
        source="a prompt" if text else f"random ids, seed {args.seed}{', made-up media' if made_up else ''}",
    )
    return OmniRequest(
        given=given,
        only=tuple(args.only),
        greedy=args.greedy,
        frames=DEFAULT_FRAMES if args.frames is None else args.frames,
        rows_per_step=1 if args.cached else load.prefill_rows,
        speaker=args.speaker,
        float64=not args.no_float64,
    )


def _request(args: argparse.Namespace, load: LoadOptions, files: ModelFiles) -> ValidationRequest:
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
        rows_per_step=1 if args.cached else load.prefill_rows,
        greedy=args.greedy,
        float64=not args.no_float64,
    )


def _encode(files: ModelFiles, text: str) -> tuple[int, ...]:
    from lluda.cli.text_input import read_text_argument
    from lluda.engine.loading import load_tokenizer

    text = read_text_argument(text, raw=True)
    return tuple(load_tokenizer(files.source).encode(text, allow_special=False))


def _print_validation(validation: Validation | OmniValidation) -> None:
    from lluda.evaluation.validation import Validation

    if isinstance(validation, Validation):
        _print_table(validation)
    else:
        _print_omni(validation)


def _judge(validation: Validation | OmniValidation) -> int:
    """Name the bars on stderr; 1 if one failed."""
    for bar in validation.bars:
        say(bar.describe())
    if validation.passed is None:
        say("not judged: bf16's bar needs the float64 run that --no-float64 left out")
    return 1 if validation.passed is False else 0


def _print_omni(validation: OmniValidation) -> None:
    """A table for each component, and the first rung that diverges."""
    console, model = _console(), validation.model
    console.print(f"{model['name']}: {model['model_type']}, {model['parameters']:,} parameters, {validation.dtype}")
    media = ", ".join(part.kind for part in validation.request.given.media) or "no media"
    rows = f"{validation.rows} rows of prompt: " if validation.rows else ""
    console.print(f"{rows}{validation.request.given.source} with {media}, against transformers")
    for component in validation.components:
        console.print(f"\n{component.component}")
        console.print(_table(component.stages))
        if component.greedy:
            what = "token" if component.component == "thinker" else "code"
            console.print(_greedy(component.greedy, "transformers", what))
        for text in component.corrections:
            console.print(f"corrected expectation: {text}")
    divergence = validation.first_divergence
    where = f"{divergence[0]}, row {divergence[1].first_divergence}" if divergence else "nowhere"
    console.print(f"\nfirst divergence (beyond {validation.tolerance:g} of a row's range): {where}")


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


def _print_table(validation: Validation) -> None:
    console = _console()
    request, model = validation.request, validation.model
    console.print(f"{model['name']}: {model['model_type']}, {model['parameters']:,} parameters, {validation.dtype}")
    console.print(f"{len(request.ids)} tokens ({request.source}), {request.mode}, against {request.reference}")
    console.print(_table(validation.stages))
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


def _greedy(greedy: GreedyParity, reference: str, what: str = "token") -> str:
    if greedy.first_divergence is None:
        return f"greedy: all {greedy.tokens} {what}s equal"
    ours, theirs = (
        "" if margin is None else f" (by {margin:.3g})" for margin in (greedy.lluda_margin, greedy.reference_margin)
    )
    return (
        f"greedy: {what} {greedy.first_divergence} of {greedy.tokens} differs: lluda {greedy.lluda_token}{ours}, "
        f"{reference} {greedy.reference_token}{theirs}"
    )
