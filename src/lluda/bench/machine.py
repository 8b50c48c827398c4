"""The machine a benchmark ran on, as far as its numbers depend on it."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil

import lluda

ISA_FLAGS = (
    "avx2", "f16c", "fma", "avx512f", "avx512bw", "avx512vl", "avx512_vbmi", "avx512vbmi", "avx512_vnni",
    "avx512_bf16", "avx_vnni", "amx_bf16", "amx_int8", "asimd", "asimddp", "bf16", "i8mm", "sve", "sve2",
)  # fmt: skip
"""Instruction sets that kernels here choose by, as Linux spells them."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Processor, memory, system and versions. ``cores`` are those this process may use."""

    cpu: str
    cores: int
    isa: tuple[str, ...]
    memory_bytes: int
    system: str
    python: str
    versions: dict[str, str | None]
    git_commit: str | None

    def describe(self) -> str:
        """One line."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items() if version)
        commit = f" at {self.git_commit}" if self.git_commit else ""
        return (
            f"{self.cpu}, {self.cores} cores ({' '.join(self.isa) or 'no vector flags known'}), "
            f"{self.memory_bytes / 1e9:.0f} GB, {self.system}, Python {self.python}; {versions}{commit}"
        )


def read_machine(distributions: Iterable[str]) -> Machine:
    """This machine, with the versions of lluda, torch and the ``distributions`` named (None: not installed)."""
    fields = _cpu_fields()
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return Machine(
        cpu=fields.get("model name") or platform.processor() or platform.machine(),
        cores=available_cores(),
        isa=tuple(flag for flag in ISA_FLAGS if flag in flags),
        memory_bytes=psutil.virtual_memory().total,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        versions={"lluda": lluda.__version__, **{name: _version(name) for name in ("torch", *distributions)}},
        git_commit=_git_commit(Path(lluda.__file__).parent),
    )


def available_cores() -> int:
    """Physical cores, as far as this process may run on them."""
    physical = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else physical
    return max(1, min(physical, allowed))


def _cpu_fields() -> dict[str, str]:
    """The first processor's block of /proc/cpuinfo; empty where there is none."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    lines = path.read_text().split("\n\n")[0].splitlines()
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _git_commit(package: Path) -> str | None:
    """The checkout's commit, with ``+`` if tracked files differ from it; None outside a checkout of lluda."""
    root = package.parent.parent
    if not (root / ".git").exists():
        return None
    commit = _git(root, "rev-parse", "--short=12", "HEAD")
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}+" if commit and changed else commit or None


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ("git", "-C", str(root), *arguments), capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
