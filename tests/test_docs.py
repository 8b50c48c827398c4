"""What documents promise: links lead somewhere, every public name is documented, every verb and extra has its place."""

from __future__ import annotations

import dataclasses
import inspect
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import lluda
from lluda.errors import LludaError
from lluda.extras import EXTRAS
from tests.test_names import ROOT

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)
_DOCUMENTED = re.compile(r"^\.\. auto\w+:: ([\w.]+)$", re.MULTILINE)


def documents() -> list[Path]:
    """Every page that is in the repository."""
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    return [ROOT / name for name in listed.splitlines() if (ROOT / name).exists()] or sorted(ROOT.glob("docs/**/*.md"))


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub and the site make them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


def links(page: Path) -> Iterator[str]:
    """Those to places in the repository."""
    for target in _LINK.findall(_CODE.sub("", page.read_text(encoding="utf-8"))):
        if not re.match(r"[a-z]+:", target):
            yield target


def test_links_lead_somewhere():
    dead, found = [], 0
    for page in documents():
        for link in links(page):
            found += 1
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            if not target.exists() or (anchor and anchor not in anchors(target)):
                dead.append((str(page.relative_to(ROOT)), link))
    assert found > 10 and dead == []


def test_every_public_name_is_in_the_reference():
    pages = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "reference").glob("*.md"))
    documented = set(_DOCUMENTED.findall(pages))
    errors = {name for name, value in vars(lluda.errors).items() if inspect.isclass(value)}
    assert "lluda.errors" in documented
    assert {name for name in lluda.__all__ if f"lluda.{name}" not in documented} - errors == set()


@pytest.mark.parametrize("name", lluda.__all__)
def test_every_public_name_says_what_it_is(name: str):
    thing = getattr(lluda, name)
    assert inspect.getdoc(thing), name
    if not inspect.isclass(thing):
        return
    for member, value in vars(thing).items():
        if not member.startswith("_") and (callable(value) or isinstance(value, property | classmethod | staticmethod)):
            assert inspect.getdoc(getattr(thing, member)), f"{name}.{member}"
    if dataclasses.is_dataclass(thing) and not issubclass(thing, LludaError):
        for field in dataclasses.fields(thing):
            assert f"``{field.name}``" in (inspect.getdoc(thing) or ""), f"{name}.{field.name}"


def test_the_start_names_every_extra():
    page = (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
    assert {extra for extra in EXTRAS if f"| `lluda[{extra}]` |" not in page} == set()


def test_the_changelog_has_this_version():
    assert f"## {lluda.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
