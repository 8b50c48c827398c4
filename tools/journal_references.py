"""The journal's references to code: files that exist, and lines that hold what they name.

Under "Code References" an entry lists ``path:line name`` in backquotes. ``python -m tools.journal_references`` puts the
lines right that changes of the code have moved, and says which names are gone.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lluda.files.atomic_file import atomic_file

ROOT = Path(__file__).resolve().parents[1]
JOURNAL = ROOT / "journal"
HEADING = "## Code References"

_REFERENCE = re.compile(r"`(?P<path>[\w./-]+\.\w+):(?P<line>\d+) (?P<name>[\w.]+)`")
_PATH = re.compile(r"`((?:src|native|tests|tools|training|docs|journal)/[\w./-]+)(?::\d+ [\w.]+)?`")
_MEMBERS = (r"^\s+(?:async )?def {name}\(", r"^\s+class {name}\b", r"^\s+{name}\b[^=]*=")
_DEFINITIONS = (
    r"^(?:async )?def {name}\(",
    r"^class {name}\b",
    r"^{name}\b[^=]*=",
    # C++: a name before its arguments, where a line begins.
    r"^(?!\s)[\w:<>,&* ]*\b{name}\(",
    r"^\s*(?:struct|enum class|namespace) {name}\b",
    *_MEMBERS,
)


@dataclass(frozen=True, slots=True)
class Reference:
    """``name`` said to be defined at ``line`` (from 1) of ``path``."""

    path: str
    line: int
    name: str


def references(text: str) -> Iterator[Reference]:
    """Those of an entry's last section."""
    for match in _REFERENCE.finditer(_section(text)):
        yield Reference(match["path"], int(match["line"]), match["name"])


def paths(text: str) -> Iterator[str]:
    """Files and folders named in an entry's last section."""
    yield from _PATH.findall(_section(text))


def definition(path: Path, name: str) -> int | None:
    """The line of ``path`` on which ``name`` (or ``Class.name``) is defined; None if none does."""
    lines = path.read_text(encoding="utf-8").splitlines()
    start, patterns = 0, _DEFINITIONS
    for part in name.split("."):
        found = _find(lines, part, start, patterns)
        if found is None:
            return None
        start, patterns = found, _MEMBERS
    return start + 1


def corrected(text: str, root: Path = ROOT) -> tuple[str, list[str]]:
    """The entry with each reference's line where its name is defined; what cannot be found."""
    missing: list[str] = []

    def replaced(match: re.Match[str]) -> str:
        path = root / match["path"]
        line = definition(path, match["name"]) if path.is_file() else None
        if line is None:
            missing.append(f"{match['path']}: {match['name']}")
            return match[0]
        return f"`{match['path']}:{line} {match['name']}`"

    section = _section(text)
    return text.replace(section, _REFERENCE.sub(replaced, section)), missing


def main() -> int:
    """Correct all entries; 1 if a name is gone."""
    gone = False
    for entry in sorted(JOURNAL.glob("[0-9]*.md")):
        text = entry.read_text(encoding="utf-8")
        right, missing = corrected(text)
        for each in missing:
            print(f"{entry.name}: not found: {each}", file=sys.stderr)
        gone = gone or bool(missing)
        if right != text:
            with atomic_file(entry) as file:
                file.write(right.encode())
    return int(gone)


def _section(text: str) -> str:
    """With its heading, up to the next one."""
    found = re.search(rf"^{HEADING}\n.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return found[0] if found else HEADING


def _find(lines: list[str], name: str, start: int, patterns: Sequence[str]) -> int | None:
    for pattern in patterns:
        compiled = re.compile(pattern.format(name=re.escape(name)))
        for index in range(start, len(lines)):
            if compiled.search(lines[index]):
                return index
    return None


if __name__ == "__main__":
    sys.exit(main())
