"""Inputs that the fuzzer starts from, and those with which it once found something: read, or refused as is right."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import watchdog
from tests.fuzz.readers import READERS

FOUND = Path(__file__).parent / "found"
SECONDS = 5


def inputs(name: str) -> dict[str, bytes]:
    seeds = {f"seed {number}": content for number, content in enumerate(READERS[name].seeds())}
    return seeds | {path.name: path.read_bytes() for path in sorted((FOUND / name).glob("*"))}


@pytest.mark.parametrize("name", READERS)
def test_found_inputs_are_read_or_refused(name: str, tmp_path: Path) -> None:
    for content in inputs(name).values():
        with watchdog(SECONDS):
            READERS[name].feed(content, tmp_path)
