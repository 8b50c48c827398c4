"""``lluda quantize``: a model as one GGUF file, its matrices in Q8_0 or BF16, with all that is needed to run it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lluda.cli import options
from lluda.cli.console import byte_progress, say
from lluda.cli.heavy_imports import heavy_imports
from lluda.errors import InvalidRequest

if TYPE_CHECKING:
    from lluda.convert.quantize import QuantizeReport

_TYPES = ("q8_0", "bf16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    options.add_model(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.gguf", help="must not exist")
    parser.add_argument("--type", choices=_TYPES, required=True, help="what matrices become")
    parser.add_argument(
        "--component", action="append", default=[], metavar="NAME=TYPE",
        help="another type for one component or a part of it, such as code_predictor=bf16 or thinker/experts=q8_0 "
        "(repeatable)",
    )  # fmt: skip
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="take tokenizer files from here instead")
    parser.add_argument(
        "--split-bytes", type=int, metavar="N", help="write parts of N bytes at most, NAME-00001-of-0000N.gguf"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")


def run(args: argparse.Namespace) -> int:
    """Write the file, name it on stdout, and report sizes and types."""
    components = _components(args.component)
    source = options.find_model(args.model, args)
    with heavy_imports():  # torch: what is refused above is refused without it
        from lluda.convert.quantize import TypeChoice
        from lluda.convert.quantize_model import quantize_model
        from lluda.weights.checkpoint import read_gguf_metadata
    with byte_progress("quantizing") as progress:
        report = quantize_model(
            source,
            args.output,
            TypeChoice(args.type, components),
            tokenizer=args.tokenizer,
            split_bytes=args.split_bytes,
            threads=args.threads,
            allow_unknown_config=args.allow_unknown_config,
            progress=progress,
        )
    for file in report.files:
        print(file)
    _say(report)
    if read_gguf_metadata(report.files[0]).get("tokenizer.ggml.model") == "none":
        say("the model has no tokenizer, so the file takes ids alone: name tokenizer files with --tokenizer")
    return 0


def _components(given: list[str]) -> dict[str, str]:
    """``NAME=TYPE`` by name. InvalidRequest: another form, or a name twice."""
    found: dict[str, str] = {}
    for one in given:
        name, equals, kind = one.partition("=")
        if not equals or not name or kind not in _TYPES:
            raise InvalidRequest(f"--component {one!r:.80}: give NAME=TYPE with a type of {', '.join(_TYPES)}")
        if name in found:
            raise InvalidRequest(f"--component {name}: given twice")
        found[name] = kind
    return found


def _say(report: QuantizeReport) -> None:
    reasons: dict[str, list[str]] = {}
    for name, reason in report.not_quantized.items():
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        say(f"not quantised: {', '.join(names[:3])}{more}: {reason}")
    before, after = report.bytes_before / 1e6, report.bytes_after / 1e6
    types = ", ".join(f"{count} {name}" for name, count in sorted(report.types.items()))
    say(f"{types} tensors: {before:,.1f} MB to {after:,.1f} MB ({after / before:.3f})")
