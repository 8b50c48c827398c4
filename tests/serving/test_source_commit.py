"""What a copy of lluda says it was made of."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from lluda.serving.source_commit import UNKNOWN, source_commit


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    return subprocess.run(
        ["git", *who, "-C", folder, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package in the folder ``src`` of no checkout."""
    made = tmp_path / "checkout" / "src" / "lluda"
    made.mkdir(parents=True)
    (made / "module.py").write_text("a = 1\n")
    return made


def test_neither_wheel_nor_checkout(package: Path) -> None:
    assert source_commit(package) == UNKNOWN


def test_a_checkout(package: Path) -> None:
    checkout = package.parent.parent
    git(checkout, "init", "--quiet")
    git(checkout, "add", ".")
    git(checkout, "commit", "--quiet", "-m", "first")
    head = git(checkout, "rev-parse", "HEAD")
    assert source_commit(package) == head
    (package / "module.py").write_text("a = 2\n")
    assert source_commit(package) == f"{head}-dirty"


def test_a_wheel(package: Path) -> None:
    (package / "commit.txt").write_text("0123abc\n")
    assert source_commit(package) == "0123abc"


def test_a_wheel_of_sources_without_git(package: Path) -> None:
    (package / "commit.txt").write_text("")
    assert source_commit(package) == UNKNOWN
