"""Clips as codes: what the talker is trained on, a few megabytes where the sound was a gigabyte.

``python -m training.code_set --sound FOLDER … --codec FOLDER --out FOLDER`` encodes sets with the codec of stage A.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.sound_set import Clip, read_sets
from training.train_codec import codes_of

_CODES, _CLIPS = "codes.safetensors", "clips.json"


@dataclass(frozen=True, slots=True)
class CodeSet:
    """``codes`` uint8 ``[groups, frames]`` of ``clips``."""

    codes: Tensor
    clips: list[Clip]

    def save(self, folder: Path) -> None:
        """Write it."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"codes": self.codes.cpu().contiguous()}, folder / _CODES)
        rows = [[*asdict(clip).values()] for clip in self.clips]
        (folder / _CLIPS).write_text(json.dumps(rows, separators=(",", ":")), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> CodeSet:
        """Read it."""
        rows = json.loads((folder / _CLIPS).read_text(encoding="utf-8"))
        return cls(load_file(folder / _CODES)["codes"], [Clip(*row) for row in rows])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sound", type=Path, nargs="+", required=True)
    parser.add_argument("--codec", type=Path, required=True, help="folder of the codec's weights")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    sound = read_sets(options.sound).to(options.device)
    CodeSet(codes_of(sound, options.codec).to(torch.uint8), sound.clips).save(options.out)


if __name__ == "__main__":
    main()
