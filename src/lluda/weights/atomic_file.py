"""Files that appear under their name only when they are whole."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from lluda.errors import LludaError


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A new binary file to write, renamed to ``path`` when the block ends well and removed when it does not.

    It is written as ``.NAME.partial`` in the same folder and flushed to the disk before the rename, so that even a
    killed process or a power cut leaves no half file under the final name. An existing ``path`` is replaced whole.

    Raises:
        LludaError: the disk is full or the file cannot be written; the OSError is its cause.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        _remove(partial)
        if isinstance(error, OSError):
            raise write_error(path, error) from error
        raise


def write_error(path: Path, error: OSError) -> LludaError:
    """The error to raise when ``path`` could not be written, with the remedy for the commonest causes."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "free disk space" if full else "check that the folder is writable"
    return LludaError(f"{path}: cannot be written: {error.strerror or error}; {remedy}, or choose another folder")


def _remove(path: Path) -> None:
    # What made the write fail may make this fail too; the first error is the one to tell.
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return
