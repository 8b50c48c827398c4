"""``lluda pack``: a BF16 checkpoint as a folder of packed matrices, which loads by mapping it."""

from __future__ import annotations

import argparse
from pathlib import Path

from lluda.cli import options
from lluda.cli.console import byte_progress, say
from lluda.cli.heavy_imports import heavy_imports


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    options.add_model(parser)
    parser.add_argument("out_dir", type=Path, help="the folder to make; must not hold anything")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="take tokenizer files from here instead")
    parser.add_argument(
        "--shard-bytes", type=int, default=5_000_000_000, metavar="N",
        help="bytes of a shard at most, before packing (default 5e9)",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")


def run(args: argparse.Namespace) -> int:
    """Write the folder, name its files on stdout, and report sizes."""
    source = options.find_model(args.model, args)
    with heavy_imports():  # torch: what is refused above is refused without it
        from lluda.convert.pack_model import pack_model
        from lluda.weights.loader import listed
    with byte_progress("packing") as progress:
        report = pack_model(
            source,
            args.out_dir,
            tokenizer=args.tokenizer,
            threads=args.threads,
            shard_bytes=args.shard_bytes,
            progress=progress,
        )
    for file in report.files:
        print(file)
    for warning in report.suspicious:
        say(f"warning: {warning}")
    if report.remark:
        say(report.remark)
    if report.incompressible:
        say(f"kept BF16, as they do not compress: {listed(report.incompressible)}")
    if source.is_gguf and args.tokenizer is None:
        say("a .gguf file's tokenizer is not copied: name tokenizer files with --tokenizer to generate text")
    before, after = report.bytes_before / 1e6, report.bytes_after / 1e6
    sizes = f"{before:,.1f} MB to {after:,.1f} MB ({after / before:.3f})"
    say(f"{len(report.packed)} matrices packed and compared bit for bit: {sizes}")
    return 0
