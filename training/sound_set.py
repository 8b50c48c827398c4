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

from training.clip import SILENCE_AFTER

FRAME = 1920
"""Samples of a frame of codes at 24 kHz."""

PLACES = 4
"""Of phonemes in a frame, 20 ms each: most last three or four."""

PLACE = FRAME // PLACES
SILENCE = " "
ALPHABET = " !,.:;?AIOTWYbdfhijklmnpstuvwzæðŋɐɑɔəɛɜɡɪɹɾʃʊʌʔʤʧθᵊᵻ"
"""hibari's symbols for English: sets with few clips have the same numbers for them as sets with many."""

_STRESS = "ˈˌ"
_SHORT = 0.08


@dataclass(frozen=True, slots=True)
class Clip:
    """A sentence: where it lies in the set's ``sound``, in frames, and where it is known the seconds from there at
    which its words begin."""

    text: str
    voice: str
    split: str
    first: int
    frames: int
    seconds: float = 0.0
    starts: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class SoundSet:
    """``sound`` int16 ``[frames * FRAME]`` of ``clips``, those to train on first. ``phonemes`` int8
    ``[frames * PLACES]``: which of the ``symbols`` is spoken in each 20 ms, -1 where it is not known."""

    sound: Tensor
    clips: list[Clip]
    phonemes: Tensor
    symbols: list[str]

    @property
    def trained(self) -> list[Clip]:
        """The clips to train on: the first ones."""
        return [clip for clip in self.clips if clip.split == "train"]

    def to(self, device: str) -> SoundSet:
        """The same with sound and phonemes on a device."""
        return SoundSet(self.sound.to(device), self.clips, self.phonemes.to(device), self.symbols)


def read_sets(folders: Sequence[Path]) -> SoundSet:
    """All clips of some sets at 24 kHz, filled up with silence to whole frames; none to train on says what a held-out
    one says."""
    entries: list[tuple[dict[str, Any], np.ndarray]] = []
    for folder in folders:
        rate = json.loads((folder / "set.json").read_text())["rate"]
        if rate != 24000:
            raise ValueError(f"{folder}: the codec is trained at 24000 Hz, not {rate}")
        sound = np.memmap(folder / "sound.i16", np.int16, "r")
        lines = (folder / "index.jsonl").read_text(encoding="utf-8").splitlines()
        entries += [(entry, sound) for entry in map(json.loads, lines)]
    held_out = {entry["text"] for entry, _ in entries if entry["split"] != "train"}
    entries = [item for item in entries if item[0]["split"] != "train" or item[0]["text"] not in held_out]
    entries.sort(key=lambda item: item[0]["split"] != "train")
    frames = [-(-entry["samples"] // FRAME) for entry, _ in entries]
    joined, clips, at = np.zeros(sum(frames) * FRAME, np.int16), [], 0
    phonemes = np.full(sum(frames) * PLACES, -1, np.int8)
    symbols = sorted({symbol for entry, _ in entries for symbol, _ in entry.get("sounds", ())} | {*ALPHABET})
    for (entry, sound), count in zip(entries, frames, strict=True):
        part = sound[entry["start"] : entry["start"] + entry["samples"]]
        joined[at * FRAME : at * FRAME + len(part)] = part
        seconds = entry["samples"] / 24000
        if entry.get("sounds"):
            found = _phonemes(entry["sounds"], seconds, count, symbols)
            phonemes[at * PLACES : (at + count) * PLACES] = found
        voice = entry["voice"].rpartition("-")[2]  # flite-rms is the speaker rms
        clips.append(Clip(entry["text"], voice, entry["split"], at, count, seconds, entry.get("starts", ())))
        at += count
    return SoundSet(torch.from_numpy(joined), clips, torch.from_numpy(phonemes), symbols)


def _audible(sounds: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """The sounds without what is not heard by itself: a stress mark's time is the next phoneme's, a short space's the
    last one's."""
    kept: list[tuple[str, float]] = []
    waiting: float | None = None
    for index, (symbol, start) in enumerate(sounds):
        if symbol in _STRESS:
            waiting = start if waiting is None else waiting
            continue
        end = sounds[index + 1][1] if index + 1 < len(sounds) else start
        if symbol == SILENCE and kept and end - start < _SHORT:
            continue
        kept.append((symbol, start if waiting is None else waiting))
        waiting = None
    return kept


def _phonemes(sounds: Sequence[tuple[str, float]], seconds: float, frames: int, symbols: list[str]) -> np.ndarray:
    """The symbol in the middle of each place of a clip; silence before the first and in the end."""
    kept = _audible(sounds)
    ids = np.array([symbols.index(SILENCE), *(symbols.index(symbol) for symbol, _ in kept)])
    middles = (np.arange(frames * PLACES) + 0.5) * PLACE / 24000
    found = ids[np.searchsorted([start for _, start in kept], middles, side="right")]
    found[middles >= seconds - SILENCE_AFTER] = symbols.index(SILENCE)
    return found
