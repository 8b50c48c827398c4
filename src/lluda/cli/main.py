"""The ``lluda`` command: finds the verb, prints errors as one line, sets the exit code (0, 1 failed, 2 bad input)."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from lluda import __version__
from lluda.errors import LludaError

VERBS = {
    "generate": "answer one prompt",
    "chat": "talk with a model, turn by turn",
    "inspect": "list every tensor of a checkpoint, with totals by component",
    "plan": "memory by component, before loading",
    "synth": "make a checkpoint with true names and shapes and seeded random values",
    "validate": "compare with transformers, layer by layer",
    "bench": "measure speed and memory, side by side with peers",
}


class _Parser(argparse.ArgumentParser):
    """One line of error, like every other error of the command."""

    def error(self, message: str) -> None:  # type: ignore[override]
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. A verb's module is imported only when it is called."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _Parser(prog="lluda", description="Qwen3 and Qwen3-Omni on your own machine, exact BF16 first.")
    parser.add_argument("--version", action="version", version=f"lluda {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=_Parser)
    for verb, summary in VERBS.items():
        sub = verbs.add_parser(verb, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", add_help=True)
        if arguments[:1] == [verb]:
            module = import_module(f"lluda.cli.{verb}")
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
    args = parser.parse_args(arguments)
    if args.verb is None:
        parser.print_help()
        return 2
    return _run(args)


def _run(args: argparse.Namespace) -> int:
    try:
        return int(args.run(args))
    except LludaError as error:
        print(f"lluda {args.verb}: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"lluda {args.verb}: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output went away; do not complain again when Python flushes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
