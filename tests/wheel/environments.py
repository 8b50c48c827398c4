"""An environment that holds nothing but torch, what torch needs, and pip: those are this environment's, by links."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from tests.test_names import ROOT

CONSTRAINTS = ROOT / "requirements" / "constraints.txt"
SECONDS = 300.0


class Environment:
    """Made in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run(sys.executable, "-m", "venv", "--without-pip", folder)
        links = folder / "links"
        links.mkdir()
        for each in _with_requirements("torch", "pip"):
            _link(each, links)
        # On the path, yet outside of the environment: pip installs beside them and takes nothing away.
        (self.site / "links.pth").write_text(f"{links}\n")

    @property
    def site(self) -> Path:
        """Where pip installs."""
        return self.folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"

    @property
    def lluda(self) -> Path:
        """The command."""
        return self.folder / "bin" / "lluda"

    def variables(self) -> dict[str, str]:
        """Those of a process that sees this environment alone."""
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "LLUDA_TINY_OMNI")}
        return kept | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def run(self, *command: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run to its end in the environment's folder; another exit code is the test's failure."""
        done = subprocess.run(
            [str(part) for part in command],
            cwd=self.folder.parent,
            env=self.variables(),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == code, f"{command}: {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done

    def python(self, code: str) -> str:
        """What ``code`` prints."""
        return self.run(self.folder / "bin" / "python", "-c", code).stdout

    def pip(self, *arguments: str | Path) -> str:
        """What pip prints."""
        return self.run(self.folder / "bin" / "python", "-m", "pip", *arguments).stdout

    def install(self, what: str | Path) -> None:
        """With the versions that are tested."""
        self.pip("install", "--quiet", "--no-compile", "-c", CONSTRAINTS, what)

    def download(self, what: str | Path, folder: Path) -> list[Path]:
        """The files that `install` would take beside what is there already, ``what`` among them."""
        report = folder / "report.json"
        self.pip("install", "--quiet", "--dry-run", "--report", report, "-c", CONSTRAINTS, what)
        found = [each["download_info"]["url"] for each in json.loads(report.read_text())["install"]]
        self.pip("download", "--quiet", "--no-deps", "--dest", folder, *found)
        return sorted(folder.glob("*.whl"))


def _with_requirements(*names: str) -> list[Distribution]:
    found: dict[str, Distribution] = {}
    wanted = list(names)
    while wanted:
        name = wanted.pop()
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:  # of other systems
            continue
        lines = [line for line in found[name].requires or [] if "extra ==" not in line]
        wanted += [re.split(r"[^\w.-]", line)[0] for line in lines]
    return list(found.values())


def _link(each: Distribution, folder: Path) -> None:
    for top in {file.parts[0] for file in each.files or []} - {"..", "__pycache__"}:
        (folder / top).symlink_to(Path(str(each.locate_file(top))))
