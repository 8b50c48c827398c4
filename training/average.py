"""The mean of several runs' weights: ``python -m training.average RUN=SHARE … --out FILE``.

Runs that began from the same weights lie in one valley, and their mean there knows what each of them learned; with the
weights from before the runs in it, also what they forgot (Wortsman et al. 2022, both).
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def average(runs: Mapping[Path, float]) -> dict[str, Tensor]:
    """Every tensor of the files as the mean by their shares.

    Raises:
        ValueError: the shares do not sum to 1, or the files have other tensors.
    """
    if abs(sum(runs.values()) - 1) > 1e-6:
        raise ValueError(f"the shares sum to {sum(runs.values()):g}: they must sum to 1")
    total: dict[str, Tensor] = {}
    for path, share in runs.items():
        found = load_file(path)
        if total and found.keys() != total.keys():
            raise ValueError(f"{path} has not the tensors of the runs before it: average runs of one stage")
        total = {name: share * value + total.get(name, torch.zeros_like(value)) for name, value in found.items()}
    return total


def _run(text: str) -> tuple[Path, float]:
    path, _, share = text.rpartition("=")
    return Path(path), float(share)


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=_run, nargs="+", metavar="RUN=SHARE", help="files of a stage's weights")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    save_file(average(dict(given.runs)), given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
