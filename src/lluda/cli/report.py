"""Results of a verb: as a JSON document in a file, and as text or JSON on stdout."""

from __future__ import annotations

import argparse
import errno
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lluda.errors import InvalidRequest, LludaError
from lluda.files.atomic_file import atomic_file


def add_report(parser: argparse.ArgumentParser) -> None:
    """``--json`` and ``--output``."""
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the JSON document here as well")


def require_writable(*paths: Path | None) -> None:
    """Find out before a long run whether its files can be written. InvalidRequest: a folder there is not, or a folder
    of that name."""
    for path in filter(None, paths):
        if path.is_dir():
            raise InvalidRequest(f"{path}: is a folder; name a file")
        if not path.absolute().parent.is_dir():
            raise InvalidRequest(f"{path}: its folder does not exist; make it first or name another file")


def publish(
    args: argparse.Namespace,
    document: dict[str, Any],
    show: Callable[[], None],
    plot: Callable[[], None] | None = None,
) -> None:
    """Write ``--output``, draw the ``plot``, then print the document (``--json``) or call ``show``, which prints text.

    Files come first, so that they are there whatever becomes of stdout. If one of the three fails, the others are done
    all the same, before the first error is raised.
    """
    failures: list[LludaError | OSError] = []
    for step in (lambda: _write(args.output, document), plot, lambda: _print(document, None if args.json else show)):
        try:
            if step:
                step()
        except (LludaError, OSError) as error:
            failures.append(error)
    if failures:
        raise failures[0]


def _write(path: Path | None, document: dict[str, Any]) -> None:
    if path:
        with atomic_file(path) as file:
            file.write(f"{json_text(document)}\n".encode())


def _print(document: dict[str, Any], show: Callable[[], None] | None) -> None:
    try:
        if show:
            show()
        else:
            print(json_text(document))
        sys.stdout.flush()
    except SystemExit:  # raised by rich when the reader closed the pipe
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from None


def json_text(value: object) -> str:
    """Strict JSON: a number that is not finite is null, and half a surrogate pair (from a file's name that is not
    UTF-8) is an escape."""
    text = json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    return text.encode(errors="backslashreplace").decode()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
