"""Clients run unmodified, each in an environment of its own: what they need must not meet what the server needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(sys.prefix) / "clients"


def require(name: str) -> Path:
    """The folder of an environment; skips where `make test-clients` did not make it."""
    folder = ROOT / name
    if not (folder / ".ready").exists():
        pytest.skip(f"the environment of {name} is not there; make test-clients makes it")
    return folder


def variables(**more: str) -> dict[str, str]:
    """The environment variables of a client, which goes through no proxy, and ``more``."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return kept | {"OMP_NUM_THREADS": "1", **more}


def run(command: list[str | Path], folder: Path, *, seconds: float = 300.0, **more: str) -> str:
    """What a client prints; its failure is the test's. ``more``: environment variables."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=variables(**more),
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, (
        f"{command[0]} ended with {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    )
    return done.stdout
