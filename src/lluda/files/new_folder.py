"""A model folder that is being written: new or empty before, and as it was before if the work fails.

While it is written it holds `MARKER`, a file that its writer has for itself (`claimed_file`) and that lists what has
been added. So two writers never share a folder, and what a killed writer left is found and removed by the next one.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lluda.errors import InvalidRequest, LludaError
from lluda.files.atomic_file import atomic_file, partial_of, write_error
from lluda.files.claimed_file import claim_file

MARKER = ".lluda-partial"
"""Names of files, a zero byte behind each."""


class NewFolder:
    """The folder ``path``; ``written`` are its files in the order added."""

    def __init__(self, path: Path, marker: int) -> None:
        self.path = path
        self.written: list[Path] = []
        self._marker = marker

    def add(self, name: str) -> Path:
        """The path of a file that the caller is about to write; it may be in a subfolder, which is made."""
        os.write(self._marker, os.fsencode(name) + b"\0")
        self.written.append(self.path / name)
        self.written[-1].parent.mkdir(exist_ok=True)
        return self.written[-1]

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Add a file of JSON."""
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
        with atomic_file(self.add(name)) as file:
            file.write(f"{text}\n".encode(errors="backslashreplace"))  # half a surrogate pair stays its escape

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
        LludaError: it, or a file in it, cannot be written, or another process is writing it.
    """
    created = False
    try:
        created = _create(path)
        with claim_file(path / MARKER, what=path, leftover=_remove_leftovers) as marker:
            _require_empty(path)
            folder = NewFolder(path, marker)
            try:
                yield folder
            except BaseException:
                # As far as the disk allows: the error that led here is the one to report.
                with suppress(OSError):
                    _remove(path, folder.written)
                raise
    except BaseException as error:
        if created:
            with suppress(OSError):
                path.rmdir()
        if isinstance(error, OSError):
            raise write_error(path, error) from error
        raise


def _create(path: Path) -> bool:
    """Make sure of a folder; whether it was created."""
    if os.path.lexists(path):
        if not path.is_dir():
            raise InvalidRequest(f"{path}: is a file; give a new or empty folder")
        if not (path / MARKER).exists():
            _require_empty(path)  # before a file is made in a folder that is not ours
        return False
    path.mkdir(parents=True)
    return True


def _require_empty(path: Path) -> None:
    found = next((file.name for file in path.iterdir() if file.name != MARKER), None)
    if found is not None:
        raise InvalidRequest(
            f"{path}: is not empty (it holds {found}); give a new or empty folder, or remove its files first"
        )


def _remove_leftovers(marker: Path) -> None:
    """Remove the files that a killed writer listed."""
    names = [os.fsdecode(name) for name in marker.read_bytes().split(b"\0")[:-1]]
    _remove(marker.parent, [marker.parent / name for name in names if _is_inside(name)])


def _is_inside(name: str) -> bool:
    """Whether ``name`` is a file of the folder, or of a folder in it."""
    parts = Path(name).parts
    return len(parts) in (1, 2) and ".." not in parts and not Path(name).is_absolute()


def _remove(folder: Path, files: list[Path]) -> None:
    for file in files:
        for path in (file, partial_of(file)):
            path.unlink(missing_ok=True)
        if file.parent != folder:
            with suppress(OSError):  # not empty yet, or gone
                file.parent.rmdir()
