"""Files that appear under their name only when they are whole, each written by one process at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from lluda.errors import InvalidRequest, LludaError
from lluda.files.claimed_file import claim_file
from lluda.files.system_errors import remedy_for


@contextmanager
def atomic_file(path: Path, *, replace: bool = True) -> Iterator[BinaryIO]:
    """A new binary file to write, renamed to ``path`` when the block ends well and removed when it does not.

    It is written as ``.NAME.partial`` in the same folder, claimed by this writer alone (`claim_file`), and flushed to
    the disk and closed before the rename: so not even a second writer, a killed process or a power cut leaves half a
    file, or one mixed of two, under the final name. An existing ``path`` is replaced whole, or without ``replace``
    refused, even if it appears while the block runs.

    Raises:
        InvalidRequest: ``path`` exists and is not to be replaced.
        LludaError: another writer is at it, the disk is full or the file cannot be written; an OSError is its cause.
    """
    partial = partial_of(path)
    try:
        with claim_file(partial, what=path) as descriptor:
            if not replace:
                require_absent(path)
            with open(descriptor, "wb", closefd=False) as file:
                yield file
                file.flush()
                os.fsync(descriptor)
            _publish(partial, path, replace)
    except OSError as error:
        raise write_error(path, error) from error


def partial_of(path: Path) -> Path:
    """The name under which `atomic_file` writes ``path``."""
    return path.with_name(f".{path.name}.partial")


def require_absent(path: Path) -> None:
    """InvalidRequest if something, a broken link included, has the name ``path``."""
    if os.path.lexists(path):
        raise InvalidRequest(f"{path}: exists; remove it first, or choose another name")


def write_error(path: Path, error: OSError) -> LludaError:
    """The error to raise when ``path`` could not be written, with the remedy for the commonest causes."""
    remedy = remedy_for(error) or "check that the folder is writable"
    # What is in the way may be another file, such as a folder of the partial file's name.
    other = "" if error.filename in (None, str(path)) else f"{os.fsdecode(error.filename)}: "
    reason = f"{other}{error.strerror or error}"
    return LludaError(f"{path}: cannot be written: {reason}; {remedy}, or choose another folder")


def _publish(partial: Path, path: Path, replace: bool) -> None:
    if replace:
        partial.replace(path)
        return
    try:
        path.hardlink_to(partial)  # unlike a rename, this fails where the name is taken
    except FileExistsError:
        require_absent(path)
        raise
    except OSError:  # a file system without hard links
        require_absent(path)
        partial.rename(path)
