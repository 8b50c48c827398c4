"""``python -m tools.turns --json FILE``: how each way to find turns does on recordings with pauses, noise and music.

``--smart-turn FILE`` and ``--thinker MODEL`` add the ways that judge. A table is then written by
``python -m tools.journal ENTRY.md NAME FILE``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lluda.engine.listening.turn_detector import TurnSettings
from lluda.engine.listening.turn_end import WAITS
from lluda.engine.listening.vad import CHUNK, RATE, VoiceDetector
from tools.turns import noise
from tools.turns.measure import Heard, SoundJudge, Way, row, turns
from tools.turns.spoken import Spoken, recordings

_SILENCES = (300, 500, 700)
_NOISES = ("white", "pink", "babble")
_DECIBELS = (20, 10, 5)
_ALONE_SECONDS = 120
_ALONE_GAIN = 10 ** (-25 / 20)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m tools.turns", description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="complete questions, and as many with a pause")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--conditions", nargs="*", help="e.g. clean white-10 babble-5; default: all")
    parser.add_argument("--smart-turn", type=Path, help="smart-turn-v3.2-cpu.onnx")
    parser.add_argument("--thinker", help="a checkpoint that judges by its first token")
    parser.add_argument("--json", type=Path, help="where the rows go; beside it NAME-alone.json and NAME-cost.json")
    chosen = parser.parse_args(arguments)
    ways = [*_plain_ways(), *_judged_ways(_judges(chosen))]
    spoken = recordings(chosen.count, chosen.seed)
    rows = []
    for condition, heard in _conditions(spoken, chosen.seed, chosen.conditions):
        for way in ways:
            rows.append(row(way, condition, heard))
            print(json.dumps(rows[-1]), flush=True)
    alone = list(_alone(ways[:1], spoken, chosen.seed))
    print(json.dumps(alone, indent=1))
    if chosen.json:
        _write(chosen.json, rows)
        _write(chosen.json.with_stem(f"{chosen.json.stem}-alone"), alone)
        _write(chosen.json.with_stem(f"{chosen.json.stem}-cost"), [_cost()])
    return 0


def _plain_ways() -> list[Way]:
    fixed = [Way(f"server VAD {ms} ms", TurnSettings(silence_duration_ms=ms)) for ms in _SILENCES]
    return [*fixed, *(Way(f"silence, {eagerness}", TurnSettings(eagerness=eagerness)) for eagerness in WAITS)]


def _judges(chosen: argparse.Namespace) -> Iterator[tuple[str, SoundJudge, int]]:
    """Name, judge, and the milliseconds that its answer takes."""
    if chosen.smart_turn:
        from tools.turns.smart_turn import SmartTurn

        yield "Smart Turn", SmartTurn(chosen.smart_turn).probability, 60
    if chosen.thinker:
        import lluda
        from tools.turns.judges import ThinkerJudge

        yield "thinker", ThinkerJudge(lluda.load(chosen.thinker)), 60


def _judged_ways(judges: Iterator[tuple[str, SoundJudge, int]]) -> Iterator[Way]:
    for name, judge, answer_ms in judges:
        said: dict[Any, float] = {}
        for eagerness in WAITS:
            yield Way(f"{name}, {eagerness}", TurnSettings(eagerness=eagerness), judge, answer_ms, said)


def _conditions(spoken: Sequence[Spoken], seed: int, wanted: Sequence[str] | None) -> Iterator[tuple[str, list[Heard]]]:
    """The recordings under each condition: clean, and with each noise at each distance in decibel."""
    if not wanted or "clean" in wanted:
        yield "clean", [Heard.of(one, one.samples) for one in spoken]
    for kind in _NOISES:
        for decibel in _DECIBELS:
            name = f"{kind}-{decibel}"
            if not wanted or name in wanted:
                random = np.random.default_rng([seed, decibel])
                yield name, [Heard.of(one, _with_noise(one, kind, decibel, spoken, random)) for one in spoken]


def _with_noise(
    one: Spoken, kind: str, decibel: float, spoken: Sequence[Spoken], random: np.random.Generator
) -> noise.Sound:
    length = len(one.samples)
    if kind == "babble":
        behind = noise.babble(length, random, [other.speech for other in spoken if other is not one])
    else:
        behind = noise.ALONE[kind](length, random)
    return noise.behind(one.samples, one.speech, behind, decibel)


def _alone(ways: Sequence[Way], spoken: Sequence[Spoken], seed: int) -> Iterator[dict[str, Any]]:
    """Turns a minute in what holds no question."""
    length = _ALONE_SECONDS * RATE
    random = np.random.default_rng(seed)
    sounds = {name: make(length, random) for name, make in noise.ALONE.items()}
    sounds["babble"] = noise.babble(length, random, [one.speech for one in spoken])
    nobody = Spoken("", "", np.zeros(0, np.float32), 0, 0)
    for name, sound in sounds.items():
        heard = Heard.of(nobody, sound * np.float32(_ALONE_GAIN))
        share = np.mean(np.array(heard.probabilities) >= TurnSettings().threshold)
        for way in ways:
            found = len(turns(way.events(heard)))
            yield {
                "sound": name,
                "turns a minute": round(found * 60 / _ALONE_SECONDS, 1),
                "frames as speech %": round(100 * float(share), 1),
            }


def _cost() -> dict[str, Any]:
    """Processor time of voice detection for each 32 ms of sound, as a session pushes them and in one push."""
    sound = np.random.default_rng(0).normal(0, 0.1, 1000 * CHUNK).astype(np.float32)
    found = {}
    for name, step in (("ms a frame, one by one", CHUNK), ("ms a frame, 64 at once", 64 * CHUNK)):
        detector = VoiceDetector()
        start = time.process_time()
        for at in range(0, len(sound), step):
            detector.push(sound[at : at + step])
        found[name] = round((time.process_time() - start), 4)
    return found


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
