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


def run(command: list[str | Path], folder: Path, *, seconds: float = 300.0, **variables: str) -> str:
    """What a client prints; its failure is the test's. It goes through no proxy."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=kept | {"OMP_NUM_THREADS": "1", **variables},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, (
        f"{command[0]} ended with {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    )
    return done.stdout
