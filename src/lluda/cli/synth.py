"""``lluda synth``: a checkpoint of any supported config, with true names and shapes and seeded random values."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lluda.cli import options

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "chat_template.json",
    "chat_template.jinja",
    "generation_config.json",
)

_CONFIG_DTYPES = {"bf16": "bfloat16", "f32": "float32"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("config_dir", type=Path, help="a folder with config.json (and tokenizer files, copied along)")
    parser.add_argument("out_dir", type=Path, help="the folder to make; must not hold anything")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change the config: text.num_hidden_layers=4"
    )
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="take tokenizer files from here instead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="bf16", choices=("bf16", "f32"))
    parser.add_argument("--shard-bytes", type=int, default=5_000_000_000, metavar="N", help="bytes of a shard at most")
    parser.add_argument("--store-tied", action="store_true", help="store a tied lm_head as well, as released 0.6B does")


def run(args: argparse.Namespace) -> int:
    """Write the checkpoint and name its files."""
    from lluda.config import ModelConfig
    from lluda.models.causal_lm import causal_lm_parameters
    from lluda.weights.checkpoint import read_config
    from lluda.weights.synth import override_config, synthesize

    raw = override_config(read_config(args.config_dir), args.set)
    raw["torch_dtype"] = _CONFIG_DTYPES[args.dtype]
    config = ModelConfig.from_hf(raw, str(args.config_dir / "config.json"))
    source = args.tokenizer or args.config_dir
    extra = {name: source / name for name in _TOKENIZER_FILES if (source / name).is_file()}
    with options.byte_progress("writing") as progress:
        files = synthesize(
            causal_lm_parameters(config.text),
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
    if not any(name in extra for name in ("tokenizer.json", "vocab.json")):
        print("lluda: no tokenizer in the config's folder: name one with --tokenizer to generate text", file=sys.stderr)
    return 0
