"""Sound to train on: clips of a set, one after the other in one array, each a whole number of frames long.

A set is a folder: ``sound.i16`` (int16, mono), ``index.jsonl`` (a line for each clip: text, voice, start, samples,
split, and perhaps phonemes) and ``set.json`` (rate).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FRAME = 1920
"""Samples of a frame of codes at 24 kHz."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A sentence: where it lies in the set's ``sound``, in frames."""

    text: str
    voice: str
    split: str
    phonemes: str
    first: int
    frames: int


@dataclass(frozen=True, slots=True)
class SoundSet:
    """``sound`` int16 ``[frames * FRAME]`` of ``clips``, those to train on first."""

    sound: Tensor
    clips: list[Clip]

    @property
    def trained(self) -> list[Clip]:
        """The clips to train on: the first ones."""
        return [clip for clip in self.clips if clip.split == "train"]

    def to(self, device: str) -> SoundSet:
        """The same with the sound on a device."""
        return SoundSet(self.sound.to(device), self.clips)


def read_sets(folders: Sequence[Path]) -> SoundSet:
    """All clips of some sets at 24 kHz, filled up with silence to whole frames."""
    entries: list[tuple[dict[str, Any], np.ndarray]] = []
    for folder in folders:
        rate = json.loads((folder / "set.json").read_text())["rate"]
        if rate != 24000:
            raise ValueError(f"{folder}: the codec is trained at 24000 Hz, not {rate}")
        sound = np.memmap(folder / "sound.i16", np.int16, "r")
        lines = (folder / "index.jsonl").read_text(encoding="utf-8").splitlines()
        entries += [(entry, sound) for entry in map(json.loads, lines)]
    entries.sort(key=lambda item: item[0]["split"] != "train")
    frames = [-(-entry["samples"] // FRAME) for entry, _ in entries]
    joined, clips, at = np.zeros(sum(frames) * FRAME, np.int16), [], 0
    for (entry, sound), count in zip(entries, frames, strict=True):
        part = sound[entry["start"] : entry["start"] + entry["samples"]]
        joined[at * FRAME : at * FRAME + len(part)] = part
        phonemes = entry.get("phonemes", "")
        voice = entry["voice"].rpartition("-")[2]  # flite-rms is the speaker rms
        clips.append(Clip(entry["text"], voice, entry["split"], phonemes, at, count))
        at += count
    return SoundSet(torch.from_numpy(joined), clips)
