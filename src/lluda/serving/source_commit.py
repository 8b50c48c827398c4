"""The commit that this copy of lluda was made of."""

from __future__ import annotations

import subprocess
from pathlib import Path

UNKNOWN = "unknown"
_PACKAGE = Path(__file__).parents[1]
_DESCRIBE = ("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
_SECONDS = 5.0


def source_commit(package: Path = _PACKAGE) -> str:
    """Of a wheel what its build wrote down (native/CMakeLists.txt), of a checkout what git says, with ``-dirty`` where
    tracked files differ from it; `UNKNOWN` where neither is there."""
    try:
        return (package / "commit.txt").read_text(encoding="ascii").strip() or UNKNOWN
    except (OSError, UnicodeDecodeError):
        pass
    checkout = package.parent.parent
    if not (checkout / ".git").exists():
        return UNKNOWN
    try:
        told = subprocess.run(
            ["git", "--no-optional-locks", "-C", checkout, *_DESCRIBE],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return UNKNOWN
    return told.stdout.strip() or UNKNOWN
