"""The journal's nine first entries have the form that was planned, and what it says of code is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.journal_references import JOURNAL, ROOT, corrected, definition, paths, references

ENTRIES = sorted(JOURNAL.glob("[0-9]*.md"))
PLANNED = (
    *("01-safetensors", "02-rope", "03-attention", "04-mlp", "05-model-assembly", "06-generation", "07-validation"),
    *("08-benchmarks", "09-omni-plan"),
)
HEADINGS = ("Goal", "Approach", "Findings", "Implications for Omni", "Performance Data", "Code References")


@pytest.mark.parametrize("name", PLANNED)
def test_a_planned_entry_has_all_its_parts_in_order(name: str) -> None:
    text = (JOURNAL / f"{name}.md").read_text(encoding="utf-8")
    assert "**Date:** 20" in text
    places = [text.find(f"\n## {heading}\n") for heading in HEADINGS]
    assert -1 not in places, [heading for heading, place in zip(HEADINGS, places, strict=True) if place < 0]
    assert places == sorted(places)
    assert list(references(text)), "an entry of the plan names lines of code"


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.stem)
def test_references_are_files_and_lines_that_exist(entry: Path) -> None:
    text = entry.read_text(encoding="utf-8")
    gone = [path for path in paths(text) if not (ROOT / path).exists()]
    assert not gone, f"{entry.name} names files that are gone"
    for reference in references(text):
        line = definition(ROOT / reference.path, reference.name)
        assert line == reference.line, f"{entry.name}: {reference}; put right by: python -m tools.journal_references"


def test_lines_that_moved_are_put_right_and_names_that_went_are_said(tmp_path: Path) -> None:
    code = "VALUE = 1\n\nclass A:\n    def f(self):\n        return VALUE\n\ndef f():\n    pass\n"
    (tmp_path / "a.py").write_text(code)
    (tmp_path / "b.cpp").write_text("// f\nint\tg;\nvoid f(int x) {\n  g = x;\n}\n")
    before = "x `a.py:9 f`\n\n## Code References\n\n"
    text = f"{before}`a.py:1 f`, `a.py:9 A.f`, `a.py:4 VALUE`, `b.cpp:1 f`, `a.py:1 gone`\n"
    right, missing = corrected(text, tmp_path)
    assert right == f"{before}`a.py:7 f`, `a.py:4 A.f`, `a.py:1 VALUE`, `b.cpp:3 f`, `a.py:1 gone`\n"
    assert missing == ["a.py: gone"]
    assert corrected(right, tmp_path)[0] == right
