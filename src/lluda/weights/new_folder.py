"""A model folder that is being written: new or empty before, and as it was before if the work fails."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lluda.errors import InvalidRequest, LludaError
from lluda.weights.atomic_file import atomic_file, write_error


class NewFolder:
    """The folder ``path``; ``written`` are its files in the order added."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.written: list[Path] = []

    def add(self, name: str) -> Path:
        """The path of a file that the caller is about to write."""
        self.written.append(self.path / name)
        return self.written[-1]

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Add a file of JSON."""
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
        with atomic_file(self.add(name)) as file:
            file.write(f"{text}\n".encode())

    def copy(self, source: Path, name: str) -> None:
        """Add a copy of ``source``."""
        with atomic_file(self.add(name)) as file, source.open("rb") as original:
            shutil.copyfileobj(original, file)

    def require_space(self, needed: int, remedy: str) -> None:
        """LludaError if less than ``needed`` bytes are free on the disk; ``remedy`` is one more than the usual."""
        free = shutil.disk_usage(self.path).free
        if needed > free:
            raise LludaError(
                f"{self.path}: the checkpoint needs {needed:,} bytes but {free:,} are free on its disk; "
                f"free disk space, choose another folder, or {remedy}"
            )


@contextmanager
def new_folder(path: Path) -> Iterator[NewFolder]:
    """The folder ``path`` to write into, created with its parents. If the block fails, what it added is removed.

    Raises:
        InvalidRequest: it exists and is not an empty folder.
        LludaError: it, or a file in it, cannot be written.
    """
    created = _prepare(path)
    folder = NewFolder(path)
    try:
        yield folder
    except BaseException as error:
        _clean_up(folder, created)
        if isinstance(error, OSError):
            raise write_error(path, error) from error
        raise


def _prepare(path: Path) -> bool:
    """Make sure of an empty folder; whether it was created."""
    try:
        if path.exists():
            if not path.is_dir():
                raise InvalidRequest(f"{path}: is a file; give a new or empty folder")
            if any(path.iterdir()):
                raise InvalidRequest(f"{path}: is not empty; give a new or empty folder, or remove its files first")
            return False
        path.mkdir(parents=True)
    except OSError as error:
        raise write_error(path, error) from error
    return True


def _clean_up(folder: NewFolder, created: bool) -> None:
    """Remove what was added, as far as the disk lets it: the error that led here is the one to tell."""
    try:
        for path in folder.written:
            path.unlink(missing_ok=True)
        if created:
            folder.path.rmdir()
    except OSError:
        return
