"""A folder of clips for the judge: WAV files and texts.jsonl with what each should say."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile


class SpeechFolder:
    """Written clip by clip: ``0000.wav``, ``0001.wav`` and so on at one rate, their texts beside them."""

    def __init__(self, path: Path, rate: int) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path, self.rate, self._count = path, rate, 0
        self._texts = (path / "texts.jsonl").open("w", encoding="utf-8")

    def add(self, samples: np.ndarray, text: str, **about: Any) -> Path:
        """Stores a clip (float32 mono) with its text; `about` is kept beside it. Returns the WAV file."""
        name = f"{self._count:04d}.wav"
        soundfile.write(self.path / name, samples, self.rate, subtype="PCM_16")
        self._texts.write(json.dumps({"file": name, "text": text} | about, ensure_ascii=False) + "\n")
        self._texts.flush()
        self._count += 1
        return self.path / name

    def close(self) -> None:
        """Ends the list of texts."""
        self._texts.close()


def clips_of(folder: Path, limit: int) -> Iterator[tuple[np.ndarray, int, dict[str, Any]]]:
    """The first clips of a set of `make_sound`: samples (float32), rate, index entry."""
    rate = json.loads((folder / "set.json").read_text(encoding="utf-8"))["rate"]
    sound = np.memmap(folder / "sound.i16", "<i2", "r")
    with (folder / "index.jsonl").open(encoding="utf-8") as lines:
        for _, line in zip(range(limit), lines, strict=False):
            entry = json.loads(line)
            clip = sound[entry["start"] : entry["start"] + entry["samples"]]
            yield clip.astype(np.float32) / 32768, rate, entry
