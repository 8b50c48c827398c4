"""Clips as codes: what the talker is trained on, a few megabytes where the sound was a gigabyte.

``python -m training.code_set --sound FOLDER … --codec FOLDER --out FOLDER`` encodes sets with the codec of stage A.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.sound_set import Clip, read_sets
from training.stored_codec import codes_of

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
    def load(cls, *folders: Path) -> CodeSet:
        """Read one, or several one after the other, of which only the first one's held-out clips are taken."""
        codes, clips, first = [], [], 0
        for folder in folders:
            rows = json.loads((folder / _CLIPS).read_text(encoding="utf-8"))
            found = [Clip(*row) for row in rows]
            clips += [replace(clip, first=clip.first + first) for clip in found if clip.split == "train" or not codes]
            codes.append(load_file(folder / _CODES)["codes"])
            first += codes[-1].shape[1]
        return cls(torch.cat(codes, dim=1), clips)


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
