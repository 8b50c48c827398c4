"""The ``lluda`` command: finds the verb, prints errors as one line, sets the exit code.

0: done. 1: the work failed (disk full, no memory left, a comparison that fails). 2: bad input (a file, a request).
130: stopped by Ctrl-C. 143, 129: by SIGTERM, SIGHUP.
"""

from __future__ import annotations

import argparse
import codecs
import gc
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from lluda import __version__
from lluda.cli.console import one_line, say
from lluda.cli.interrupts import Terminated, terminating_signals
from lluda.errors import LludaError
from lluda.files.system_errors import remedy_for

VERBS = {
    "generate": "answer one prompt",
    "ask": "ask an Omni model about recordings, images and videos",
    "serve": "answer many callers over HTTP, as the OpenAI API",
    "speak": "read a text aloud with an Omni model's voice",
    "chat": "talk with a model, turn by turn",
    "talk": "speak with an Omni model: microphone in, loudspeaker out",
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
"""Objects made between two collections. Imports and a tokenizer make a million that all stay: collecting
again and again took 0.7 s of a start (journal/08-benchmarks.md)."""

_ESCAPING = "lluda.escaping"
_EPILOG = "'lluda VERB --help' lists a verb's options. Try: lluda generate \"What is the capital of France?\""


class _Parser(argparse.ArgumentParser):
    """One line of error, like every other error of the command."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {one_line(message)} (see {self.prog} --help)\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        """argparse drops errors here; help that stdout does not take is a failure."""
        if file is sys.stdout:
            file.write(message)
        else:
            super()._print_message(message, file)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    verb = next((argument for argument in arguments if not argument.startswith("-")), "")
    name = f"lluda {verb}" if verb in VERBS else "lluda"
    _prepare_streams()
    gc.set_threshold(_COLLECT_EVERY, *gc.get_threshold()[1:])
    try:
        with terminating_signals():
            code = _run(arguments, verb)
            sys.stdout.flush()
        return code
    except (Exception, KeyboardInterrupt, Terminated) as error:
        ending = _ending(error)
        if ending is None:  # our own bug
            raise
        code, message = ending
        if message:
            say(message, name)
        return code
    finally:
        _drop_unwritable_output()


def _ending(error: BaseException) -> tuple[int, str | None] | None:
    """The exit code of a run that ended with ``error``, and its message; None for an error that is not expected."""
    ending: tuple[int, str | None] | None = None
    match error:
        case LludaError() | Terminated():
            ending = error.exit_code, str(error)
        case KeyboardInterrupt():
            ending = 130, "stopped"
        case BrokenPipeError():  # the reader closed the pipe
            ending = 0, None
        case OSError():
            ending = 1, _system_error(error)
        case _ if _out_of_memory(error):
            ending = 1, "no memory left; take a smaller --max-context or model (lluda plan shows what a model takes)"
        case RuntimeError() if "can't start new thread" in str(error):
            ending = 1, "no thread can be started; end other processes, or raise their limits (ulimit -u, ulimit -v)"
    return ending


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
            module = import_module(f"lluda.cli.verbs.{verb}")
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
    _require_working_directory()
    if getattr(args, "tensor_parallel", 1) > 1 and int(os.environ.get("RANK", "0")) > 0:
        return _follow()
    return int(args.run(args))


def _follow() -> int:
    """Of several processes that torchrun started, another than the first: it computes what that one tells it."""
    from lluda.engine.parallel.follower import follow

    follow()
    return 0


def _require_working_directory() -> None:
    """LludaError: it was deleted. Libraries that ask for it end the process with messages of their own."""
    try:
        Path.cwd()
    except OSError as error:
        raise LludaError(
            f"the working directory cannot be used: {error.strerror}; change to one that exists (cd)"
        ) from None


def _prepare_streams() -> None:
    """Streams that were closed read and write nothing, and leave their descriptors to no other file. What their
    encoding lacks is printed as an escape instead of ending the run; a file's name leaves as the bytes it has."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 (as long as the process)
    codecs.register_error(_ESCAPING, _bytes_or_escape)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ESCAPING)


def _bytes_or_escape(error: UnicodeError) -> tuple[bytes, int]:
    """Python's ``surrogateescape`` where that has an answer, else its ``backslashreplace``."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    escaped = [
        bytes([ord(character) - 0xDC00]) if "\udc80" <= character <= "\udcff" else ascii(character)[1:-1].encode()
        for character in text
    ]
    return b"".join(escaped), error.end


def _system_error(error: OSError) -> str:
    """An OSError that no other layer explained, with its file where it names one."""
    remedy = remedy_for(error)
    thing = "input or output" if error.filename is None else os.fsdecode(error.filename)
    return f"{thing}: {error.strerror or error}" + (f"; {remedy}" if remedy else "")


def _out_of_memory(error: BaseException) -> bool:
    """Whether Python, C++, torch's CPU allocator or its CUDA one (OutOfMemoryError) found no memory."""
    signs = ("can't allocate memory", "not enough memory", "bad_alloc")
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs))
    )


def _drop_unwritable_output() -> None:
    """Drop a stream that cannot be written (closed pipe, full disk): Python would report it at exit, with code 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    sys.exit(main())
