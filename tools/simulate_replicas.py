"""Spoken conversations over N machines, simulated from what was measured on one, with the engine's own scheduler.

``python -m tools.simulate_replicas --machines 12,16,20,24 > journal/data/replicas-simulated.json``

A machine makes one step after the other, as `lluda.engine.scheduler.Scheduler` says; a step takes what its parts were
measured to take. A conversation stays on its machine (its rows are there), so machines have nothing to do with each
other, and each has its share of the conversations, as even as can be.

Left out: the network, Ray's proxy (milliseconds, measured in docs/scaling.md), and users who speak into answers, whose
rest then costs nothing.
"""

from __future__ import annotations

import argparse
import bisect
import heapq
import json
import math
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lluda.engine.scheduler import Entry, Scheduler, Step

FRAME_SECONDS = 0.08
AUDIO_ROWS_A_SECOND = 13
"""Of a prompt, for a second of sound."""

DATA = Path(__file__).parents[1] / "journal/data"
DECODE, SPEECH = DATA / "gpu-batch-thinker.json", DATA / "gpu-omni.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Talk:
    """How people talk: means of lognormal lengths in seconds with a coefficient of variation of ``spread``."""

    user_seconds: float = 4.0
    answer_seconds: float = 6.0
    pause_seconds: float = 1.5
    silence_seconds: float = 0.5
    spread: float = 0.5
    tokens_a_second: float = 3.3
    """Of text, for a second of the answer's sound."""

    def length(self, mean: float, draw: random.Random) -> float:
        """Seconds; never under a fifth of the mean."""
        sigma = math.sqrt(math.log1p(self.spread**2))
        return max(mean / 5, draw.lognormvariate(math.log(mean) - sigma**2 / 2, sigma))


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Seconds of one machine's steps: ``decode`` by sequences, ``rows`` by rows of prompts, both with lines between;
    ``frame``: of one answer, talker, code predictor and code2wav; ``encode``: a second of a user's sound; ``begin``:
    from an answer's first token to its first frame. Several frames in one step take ``together`` times ``frame`` for
    all but the first."""

    decode: tuple[tuple[float, float], ...]
    rows: tuple[tuple[float, float], ...]
    frame: float
    encode: float
    begin: float
    together: float = 1.0

    @classmethod
    def measured(cls, together: float) -> Costs:
        """From one H100's figures (journal/11-gpu.md)."""
        batches, speech = _medians(DECODE), _medians(SPEECH)
        decode = tuple((count, count / batches[f"streams{count}_sampled"]) for count in (1, 8, 32))
        rows = ((1.0, decode[0][1]), *((count, count / speech[f"pp{count}"]) for count in (145, 2048)))
        frame = (speech["speech frame"] + speech["code2wav frame"]) / 1e3
        encode = speech["audio encoder 10 s"] / 1e3
        begin = speech["first audio"] / 1e3 - encode - rows[1][1] - decode[0][1] - frame
        return cls(decode=decode, rows=rows, frame=frame, encode=encode / 10, begin=max(0.0, begin), together=together)

    def of(self, step: Step) -> float:
        """Seconds of a step, without encoding and beginning."""
        prompt = sum(count for _, count in step.prefill)
        seconds = _line(self.decode, len(step.decode)) + _line(self.rows, prompt)
        return seconds + (self.frame * (1 + self.together * (len(step.frames) - 1)) if step.frames else 0.0)


@dataclass(slots=True)
class Turn:
    """One answer: what is to be made, and what was."""

    asked: float
    frames: int
    tokens: int
    entry: Entry
    decoded: int = 0
    made: int = 0
    begun: bool = False


@dataclass
class Found:
    """``sounds``: from a turn's end to its first sound; ``dry``: answers in which a listener had to wait."""

    sounds: list[float] = field(default_factory=list)
    dry: int = 0
    busy: float = 0.0


class Machine:
    """``count`` conversations for ``seconds``, of which the first ``warm`` are not counted."""

    def __init__(self, costs: Costs, talk: Talk, count: int, seconds: float, warm: float, seed: int) -> None:
        self._costs, self._talk, self._seconds, self._warm = costs, talk, seconds, warm
        self._draw = random.Random(seed)
        self._scheduler = Scheduler(max_running=max(1, 2 * count), chunk=2048)
        self._events: list[tuple[float, int, str, float]] = []
        self._turns: dict[int, Turn] = {}
        self._heard: dict[int, Entry] = {}
        self._number = 0
        self.found = Found()
        for _ in range(count):
            self._later(self._draw.uniform(0, 10), "speaks", 0.0)

    def run(self) -> Found:
        """All of it."""
        now = 0.0
        while now < self._seconds:
            extra = sum(self._happen(*event) for event in self._due(now))
            while (entry := self._scheduler.next_to_admit()) is not None:
                entry.running = True
            step = self._scheduler.step(now)
            if step.is_empty and not extra:
                now = self._events[0][0]
                continue
            extra += self._begin(step)
            took = self._costs.of(step) + extra
            if now >= self._warm:
                self.found.busy += took
            now += took
            prompt = _line(self._costs.rows, sum(count for _, count in step.prefill))
            self._scheduler.measured(step, took - prompt, prompt)
            self._after(step, now)
        self.found.busy /= self._seconds - self._warm
        return self.found

    def _due(self, now: float) -> Iterator[tuple[float, str, float]]:
        while self._events and self._events[0][0] <= now:
            moment, _, what, left = heapq.heappop(self._events)
            yield moment, what, left

    def _later(self, moment: float, what: str, left: float) -> None:
        self._number += 1
        heapq.heappush(self._events, (moment, self._number, what, left))

    def _happen(self, moment: float, what: str, left: float) -> float:
        """Seconds of the machine that it takes at once. A user's sound is encoded, and its rows are computed, second by
        second while it comes; when the turn is over, the last row and the answer are left."""
        if what == "speaks":
            left = self._talk.length(self._talk.user_seconds, self._draw)
        elif what == "ends":
            self._ask(moment)
            return 0.0
        heard = min(1.0, left)
        if left > 1.0:
            self._later(moment + 1.0, "goes on", left - 1.0)
        else:
            self._later(moment + left + self._talk.silence_seconds, "ends", 0.0)
        self._add(prompt=max(1, round(AUDIO_ROWS_A_SECOND * heard)))
        return heard * self._costs.encode

    def _add(self, prompt: int, *, spoken: bool = False) -> Entry:
        self._number += 1
        entry = Entry(self._number, prompt_left=prompt, priority=-1, spoken=spoken, shares_steps=False)
        self._scheduler.add(entry)
        self._heard[entry.id] = entry
        return entry

    def _ask(self, moment: float) -> None:
        seconds = self._talk.length(self._talk.answer_seconds, self._draw)
        frames, tokens = math.ceil(seconds / FRAME_SECONDS), math.ceil(seconds * self._talk.tokens_a_second)
        entry = self._add(prompt=1, spoken=True)
        self._turns[entry.id] = Turn(moment, frames, tokens, entry)

    def _begin(self, step: Step) -> float:
        """Seconds for the talker's prompts of answers whose first frame this step makes."""
        first = [self._turns[number] for number in step.frames if not self._turns[number].begun]
        for turn in first:
            turn.begun = True
        return len(first) * self._costs.begin

    def _after(self, step: Step, now: float) -> None:
        for number, count in step.prefill:
            entry = self._heard[number]
            entry.prompt_left -= count
            if entry.prompt_left == 0 and number in self._turns:
                self._token(self._turns[number])
            elif entry.prompt_left == 0:
                self._end(number)
        for number in step.decode:
            self._token(self._turns[number])
        for number in step.frames:
            self._frame(number, self._turns[number], now)

    def _token(self, turn: Turn) -> None:
        turn.decoded += 1
        turn.entry.decoding = turn.decoded < turn.tokens
        turn.entry.speaking = turn.made < min(turn.decoded, turn.tokens) or not turn.entry.decoding

    def _frame(self, number: int, turn: Turn, now: float) -> None:
        entry = turn.entry
        if entry.heard_until is None:
            entry.heard_until = now
            if turn.asked >= self._warm:
                self.found.sounds.append(now - turn.asked)
        elif entry.heard_until < now:
            self.found.dry += turn.asked >= self._warm
            entry.heard_until = now
        entry.heard_until += FRAME_SECONDS
        turn.made += 1
        entry.speaking = not entry.decoding or turn.made < turn.decoded
        if turn.made == turn.frames:
            self._later(entry.heard_until + self._talk.length(self._talk.pause_seconds, self._draw), "speaks", 0.0)
            self._end(number)

    def _end(self, number: int) -> None:
        self._scheduler.remove(number)
        del self._heard[number]
        self._turns.pop(number, None)


def simulate(
    costs: Costs, talk: Talk, conversations: int, machines: int, seconds: float, warm: float
) -> dict[str, float]:
    """All machines; a row of the table."""
    shares = [conversations // machines + (number < conversations % machines) for number in range(machines)]
    found = [Machine(costs, talk, share, seconds, warm, seed).run() for seed, share in enumerate(shares)]
    sounds = sorted(one for machine in found for one in machine.sounds)
    return {
        "machines": machines,
        "conversations a machine": round(conversations / machines, 1),
        "turns": len(sounds),
        "first sound p50, ms": round(1e3 * _quantile(sounds, 0.50), 1),
        "p95, ms": round(1e3 * _quantile(sounds, 0.95), 1),
        "p99, ms": round(1e3 * _quantile(sounds, 0.99), 1),
        "waits in 1,000 answers": round(1e3 * sum(one.dry for one in found) / max(1, len(sounds)), 1),
        "busy": round(sum(one.busy for one in found) / machines, 3),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The command in the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m tools.simulate_replicas", description=__doc__)
    parser.add_argument("--conversations", type=int, default=1000)
    parser.add_argument("--machines", default="16,20,24,28,32", help="numbers of machines to try")
    parser.add_argument("--seconds", type=float, default=150.0, help="simulated")
    parser.add_argument("--warm", type=float, default=30.0, help="of these, not counted")
    parser.add_argument(
        "--together", type=float, default=1.0, help="cost of one frame more in a step; 1: as much as one alone"
    )
    args = parser.parse_args(argv)
    costs, talk = Costs.measured(args.together), Talk()
    rows = [
        simulate(costs, talk, args.conversations, int(count), args.seconds, args.warm)
        for count in args.machines.split(",")
    ]
    given = {"conversations": args.conversations, "costs": asdict(costs), "talk": asdict(talk)}
    print(json.dumps({"kind": "rows", "given": given, "rows": rows}, indent=1))
    return 0


def _line(points: Sequence[tuple[float, float]], x: float) -> float:
    """Between points, and on beyond the last; nothing costs nothing."""
    if x <= 0:
        return 0.0
    if x <= points[0][0]:
        return points[0][1]
    right = min(bisect.bisect_left(points, (x,)), len(points) - 1)
    (x0, y0), (x1, y1) = points[right - 1], points[right]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else math.nan


def _medians(path: Path) -> dict[str, float]:
    rows = json.loads(path.read_text())["rows"]
    return {row["test"]: row["median"] for row in rows if row["engine"] == "lluda" and row["format"] == "BF16"}


if __name__ == "__main__":
    sys.exit(main())
