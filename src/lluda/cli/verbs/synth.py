"""``lluda synth``: a checkpoint of any supported config, with true names and shapes and seeded random values."""

from __future__ import annotations

import argparse
from pathlib import Path

from lluda.cli import options
from lluda.cli.console import byte_progress, say
from lluda.cli.heavy_imports import heavy_imports
from lluda.errors import InvalidRequest
from lluda.weights.model_folder import VOCABULARIES, settings_files, tokenizer_files

_CONFIG_DTYPES = {"bf16": "bfloat16", "f32": "float32"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("config_dir", type=Path, help="a folder with config.json (and tokenizer files, copied along)")
    parser.add_argument("out_dir", type=Path, help="the folder to make; must not hold anything")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change the config, as in text.num_hidden_layers=4 (may be repeated)",
    )
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="take tokenizer files from here instead")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random values (default 0)")
    parser.add_argument("--dtype", default="bf16", choices=("bf16", "f32"), help="default bf16")
    parser.add_argument(
        "--shard-bytes", type=int, default=5_000_000_000, metavar="N", help="bytes of a shard at most (default 5e9)"
    )
    parser.add_argument("--store-tied", action="store_true", help="store a tied lm_head as well, as released 0.6B does")
    options.add_unknown_config(parser)


def run(args: argparse.Namespace) -> int:
    """Write the checkpoint and name its files on stdout."""
    from lluda.config.model import ModelConfig
    from lluda.convert.synth import override_config, synthesize
    from lluda.weights.checkpoint import CONFIG_NAME, read_config
    from lluda.weights.hub.sources import resolve_model

    # Absolute, so that a mistyped path is never taken for a name on the Hub and fetched.
    source = resolve_model(args.config_dir.absolute())
    raw = override_config(read_config(source), args.set)
    raw["dtype" if "dtype" in raw else "torch_dtype"] = _CONFIG_DTYPES[args.dtype]
    config = ModelConfig.from_hf(raw, str(source / CONFIG_NAME), allow_unknown=args.allow_unknown_config)
    extra = _extra_files(args.config_dir, args.tokenizer)
    with heavy_imports():  # torch: what is refused above is refused without it
        from lluda.models.build import all_parameters
    with byte_progress("writing") as progress:
        files = synthesize(
            all_parameters(config),
            args.out_dir,
            config=raw,
            extra_files=extra,
            seed=args.seed,
            dtype=args.dtype.upper(),
            shard_bytes=args.shard_bytes,
            store_tied=args.store_tied,
            progress=progress,
        )
    for file in files:
        print(file)
    if not any(name in extra for name in VOCABULARIES):
        say("no tokenizer in the config's folder: name one with --tokenizer to generate text")
    return 0


def _extra_files(config_dir: Path, tokenizer_dir: Path | None) -> dict[str, Path]:
    """What is copied along: settings beside the config, and tokenizer files of either folder."""
    found = tokenizer_files(config_dir if tokenizer_dir is None else tokenizer_dir)
    if tokenizer_dir is not None and not any(name in found for name in VOCABULARIES):
        raise InvalidRequest(f"--tokenizer {tokenizer_dir}: holds neither {' nor '.join(VOCABULARIES)}")
    return found | settings_files(config_dir)
