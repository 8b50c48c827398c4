"""The name of a model in messages: the snapshots of the Hub's cache are folders named by their commit."""

from __future__ import annotations

from pathlib import Path

_ORGANISATION = "models--"
_FIRST = "main"


def model_name(path: Path) -> str:
    """``org/name@revision`` for a snapshot in the Hub's cache (a branch or tag that means it, else its commit), else
    the name of the folder or file."""
    snapshots, repository = path.parent, path.parent.parent
    if snapshots.name != "snapshots" or not repository.name.startswith(_ORGANISATION):
        return path.name or str(path)
    name = repository.name.removeprefix(_ORGANISATION).replace("--", "/", 1)
    return f"{name}@{_revision(repository / 'refs', path.name)}"


def _revision(refs: Path, commit: str) -> str:
    """A name of ``commit`` among the files below ``refs``, each of which holds the commit it means."""
    try:
        names = [str(ref.relative_to(refs)) for ref in sorted(refs.rglob("*")) if ref.is_file()]
        found = [name for name in names if (refs / name).read_text(encoding="ascii").strip() == commit]
    except (OSError, ValueError):
        found = []
    return _FIRST if _FIRST in found else found[0] if found else commit
