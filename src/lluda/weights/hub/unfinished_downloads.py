"""What a broken-off download leaves in a model folder: files named by the client as not whole yet."""

from __future__ import annotations

import os
from pathlib import Path

_SUFFIXES = (".incomplete", ".part", ".partial", ".crdownload", ".download", ".aria2", ".tmp")
_CLIENT_FOLDER = Path(".cache", "huggingface", "download")
"""Where ``hf download --local-dir`` keeps what it has not finished."""


def unfinished_downloads(folder: Path) -> str:
    """A clause that names what was not finished in ``folder``, to end a message with; empty if there is nothing."""
    names = [*_unfinished(folder), *_unfinished(folder / _CLIENT_FOLDER)]
    if not names:
        return ""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"; a download was broken off ({names[0]}{more}): run it again"


def _unfinished(folder: Path) -> list[str]:
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208
    except OSError:
        return []
    return [name for name in names if name.lower().endswith(_SUFFIXES) and not name.startswith(".")]
