"""The ``lluda`` command: finds the verb, prints errors as one line, sets the exit code.

0: done. 1: the work failed (disk full, no memory left, a comparison that fails). 2: bad input (a file, a request).
130: stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import errno
import gc
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from lluda import __version__
from lluda.cli.console import one_line, say
from lluda.errors import LludaError

VERBS = {
    "generate": "answer one prompt",
    "ask": "ask an Omni model about recordings, pictures and videos",
    "speak": "read a text aloud with an Omni model's voice",
    "chat": "talk with a model, turn by turn",
    "inspect": "list every tensor of a checkpoint, with totals by component",
    "plan": "memory by component, before loading",
    "synth": "make a checkpoint with true names and shapes and seeded random values",
    "quantize": "write a model as one GGUF file, in Q8_0 or BF16",
    "perplexity": "how well a model predicts a text, and how much of another it keeps",
    "pack": "pack a BF16 checkpoint to 12 bits a weight, without loss",
    "validate": "compare with transformers, layer by layer",
    "bench": "measure speed and memory, side by side with peers",
}
_COLLECT_EVERY = 200_000
"""Objects made between two collections. Imports and a tokenizer make a million that all stay: looking through them
again and again took 0.7 s of a start (journal/08-benchmarks.md)."""

_EPILOG = "'lluda VERB --help' lists a verb's options. Try: lluda generate \"What is the capital of France?\""
_REMEDIES = {
    errno.ENOSPC: "free disk space",
    errno.EDQUOT: "free disk space",
    errno.EACCES: "check its permissions",
    errno.EPERM: "check its permissions",
    errno.EMFILE: "allow more open files (ulimit -n)",
}


class _Parser(argparse.ArgumentParser):
    """One line of error, like every other error of the command."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {one_line(message)} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    verb = next((argument for argument in arguments if not argument.startswith("-")), "")
    name = f"lluda {verb}" if verb in VERBS else "lluda"
    _prepare_streams()
    gc.set_threshold(_COLLECT_EVERY, *gc.get_threshold()[1:])
    try:
        code = _run(arguments, verb)
        sys.stdout.flush()
        return code
    except LludaError as error:
        say(str(error), name)
        return error.exit_code
    except KeyboardInterrupt:
        say("stopped", name)
        return 130
    except BrokenPipeError:  # whoever reads our output has seen enough
        return 0
    except OSError as error:
        say(_system_error(error), name)
        return 1
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        say("no memory left; take a smaller --max-context or model (lluda plan shows what a model takes)", name)
        return 1
    finally:
        _drop_unwritable_output()


def _run(arguments: list[str], verb: str) -> int:
    """Parse and call the verb. Only the verb's own module is imported, so that light verbs and --help are quick."""
    parser = _Parser(
        prog="lluda",
        description="Qwen3 and Qwen3-Omni on your own machine, exact BF16 first.",
        epilog=_EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"lluda {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=_Parser)
    chosen = parser
    for known, summary in VERBS.items():
        description = f"{summary[0].upper()}{summary[1:]}."
        sub = verbs.add_parser(known, help=summary, description=description, allow_abbrev=False)
        if known == verb:
            module = import_module(f"lluda.cli.{verb}")
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
            chosen = sub
    try:
        args, unknown = parser.parse_known_args(arguments)
        if unknown:
            chosen.error(f"unrecognized arguments: {' '.join(unknown)}")
    except SystemExit as ended:  # --help, --version, a usage error
        return ended.code if isinstance(ended.code, int) else 0
    if args.verb is None:
        parser.print_help(sys.stderr)
        return 2
    return int(args.run(args))


def _prepare_streams() -> None:
    """Streams that were closed read and write nothing, and leave their descriptors to no other file. What the
    terminal's encoding lacks is printed as an escape instead of ending the run."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 (as long as the process)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _system_error(error: OSError) -> str:
    """An OSError no deeper layer explained, with its file where it names one."""
    remedy = _REMEDIES.get(error.errno or 0)
    thing = "input or output" if error.filename is None else os.fsdecode(error.filename)
    return f"{thing}: {error.strerror or error}" + (f"; {remedy}" if remedy else "")


def _out_of_memory(error: MemoryError | RuntimeError) -> bool:
    """Whether Python, torch's CPU allocator or its CUDA one (OutOfMemoryError) found no memory."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )


def _drop_unwritable_output() -> None:
    """If stdout takes nothing more (closed pipe, full disk), let it go, or Python would complain at its exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
