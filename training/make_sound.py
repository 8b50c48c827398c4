"""Makes a set of speech: ``python -m training.make_sound speak --voice lark --hours 6 --out FOLDER`` and the like.

A set is a folder: sound.i16 (int16 little-endian mono, clips one after the other), index.jsonl (a line a clip) and
set.json. Clips are written as they come and in order; the same command goes on where it stopped.
"""

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from training.clip import finished
from training.script import FAMILIES, Line, hearing_lines, speaking_lines
from training.voices.voice import open_voice

SPEAK_RATE, HEAR_RATE = 24000, 16000
_HOUR = 3600
_WINDOW = 8


class _Clip(NamedTuple):
    """A numbered line with the bytes of its clip, and what the index says of them; no bytes where no sound came."""

    number: int
    line: Line
    data: bytes
    about: dict[str, Any]


def _spoken(task: tuple[int, Line, int]) -> _Clip:
    """A line, spoken."""
    number, line, rate = task
    spoken = open_voice(line.voice)(line.text, line.seed)
    try:
        sound, later = finished(spoken.samples, spoken.rate, rate)
    except ValueError as error:
        print(f"left out: {line.voice}, {line.text!r}: {error}", file=sys.stderr, flush=True)
        return _Clip(number, line, b"", {})
    about: dict[str, Any] = {"phonemes": spoken.phonemes} if spoken.phonemes else {}
    if rate == SPEAK_RATE and not spoken.phonemes:
        from training.voices.hibari_voice import phonemes

        about["phonemes"] = phonemes(line.text)
    if len(spoken.starts) == len(line.text.split()):
        about["starts"] = [round(start + later, 3) for start in spoken.starts]
    if rate == SPEAK_RATE and spoken.sounds:
        about["sounds"] = [[sound, round(start + later, 3)] for sound, start in spoken.sounds]
    return _Clip(number, line, sound.tobytes(), about)


def _resumed(folder: Path) -> tuple[int, int]:
    """The script's next line and the samples so far; what was written of a clip without an index line is cut off."""
    index, sound = folder / "index.jsonl", folder / "sound.i16"
    if not index.exists():
        index.touch()
        sound.touch()
        return 0, 0
    whole = index.read_bytes()
    whole = whole[: whole.rfind(b"\n") + 1]
    last = json.loads(whole.splitlines()[-1]) if whole else {"line": -1, "start": 0, "samples": 0}
    os.truncate(index, len(whole))
    os.truncate(sound, 2 * (last["start"] + last["samples"]))
    return last["line"] + 1, last["start"] + last["samples"]


def make_set(
    folder: Path, lines: Iterator[Line], rate: int, hours: float, seconds: float, jobs: int, clips: int = 0
) -> float:
    """Writes clips until the set has so many hours, or so many lines are said, or so many seconds have passed.

    Returns:
        the hours of sound the set has.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done, samples = _resumed(folder)
    about = {"rate": rate, "hours": hours, "clips": clips}
    (folder / "set.json").write_text(json.dumps(about) + "\n", encoding="utf-8")
    end, full = time.monotonic() + seconds, hours * _HOUR * rate
    tasks = ((number, line, rate) for number, line in itertools.islice(enumerate(lines), done, clips or None))
    with (
        (folder / "sound.i16").open("ab") as sound,
        (folder / "index.jsonl").open("a", encoding="utf-8") as index,
        closing(_all_spoken(tasks, jobs)) as all_spoken,
    ):
        for clip in all_spoken:
            if samples >= full or time.monotonic() >= end:
                break
            if not clip.data:
                continue
            sound.write(clip.data)
            sound.flush()
            index.write(json.dumps(_entry(clip, samples), ensure_ascii=False) + "\n")
            index.flush()
            samples += len(clip.data) // 2
    return samples / rate / _HOUR


def _all_spoken(tasks: Iterator[tuple[int, Line, int]], jobs: int) -> Iterator[_Clip]:
    if jobs == 1:
        yield from map(_spoken, tasks)
        return
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))
    try:
        # In windows: the script has no end.
        for window in iter(lambda: list(itertools.islice(tasks, _WINDOW * jobs)), []):
            yield from pool.map(_spoken, window)
    finally:
        # What is running ends by itself; what waits is given up.
        pool.shutdown(cancel_futures=True)


def _entry(clip: _Clip, start: int) -> dict[str, Any]:
    """A clip's line in the index. `starts` are the seconds at which each word of the text begins, `sounds` the
    phonemes, each with the second at which it begins."""
    line = clip.line
    entry: dict[str, Any] = {"line": clip.number, "text": line.text, "voice": line.voice.partition("@")[0]}
    entry |= {"start": start, "samples": len(clip.data) // 2, "split": line.split}
    return entry | clip.about | line.about


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("speak", "hear"))
    parser.add_argument(
        "--voice", default="lark", help="of speak: lark, rook, flite-rms, … (or tone, which needs no package)"
    )
    parser.add_argument("--family", default="lark", help=f"of hear: {', '.join(FAMILIES)}")
    parser.add_argument("--split", default="train", choices=("train", "test"))
    parser.add_argument("--part", type=int, default=0, help="another part of the script, with other lines")
    parser.add_argument("--hours", type=float, default=1000.0)
    parser.add_argument("--clips", type=int, default=0, help="say so many lines of the script")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after so many seconds of work")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    if given.what == "speak":
        lines, rate = speaking_lines(given.voice, given.split, given.part), SPEAK_RATE
    else:
        lines, rate = hearing_lines(given.family, given.split, given.part), HEAR_RATE
    start = time.monotonic()
    hours = make_set(given.out, lines, rate, given.hours, given.seconds, given.jobs, given.clips)
    print(f"{given.out}: {hours:.3f} h of sound, {time.monotonic() - start:.0f} s of work", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
