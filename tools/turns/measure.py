"""Turns found in recordings of which is known where speech begins and ends, counted by what went wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lluda.engine.listening.turn_detector import (
    SpeechEnded,
    SpeechStarted,
    TurnDetector,
    TurnEvent,
    TurnSettings,
)
from lluda.engine.listening.vad import CHUNK, RATE, VoiceDetector
from tools.turns.spoken import Spoken

_NEAR = RATE // 5
"""A turn that begins within so many samples of speech was begun by it."""

SoundJudge = Callable[[NDArray[np.float32]], float]
"""The sound of a turn until its pause -> how likely the turn is over."""


@dataclass(frozen=True)
class Heard:
    """A recording under one condition: its sound and the probability of speech in each frame."""

    spoken: Spoken
    samples: NDArray[np.float32]
    probabilities: Sequence[float]

    @classmethod
    def of(cls, spoken: Spoken, samples: NDArray[np.float32]) -> Heard:
        """What the voice detector makes of ``samples``."""
        return cls(spoken, samples, VoiceDetector().push(samples).tolist())


@dataclass(frozen=True)
class Way:
    """A way to find turns. ``answer_ms``: how long its judge takes, as the detector sees it. What the judge said is
    kept by recording, condition and pause, since ways of different eagerness ask it the same."""

    name: str
    settings: TurnSettings
    judge: SoundJudge | None = None
    answer_ms: int = 0
    said: dict[Any, float] = field(default_factory=dict)

    def events(self, heard: Heard) -> list[tuple[int, TurnEvent]]:
        """The events, each with the sample up to which was heard when it came."""
        begun, asked = [0], [0]
        frames = -(-self.answer_ms * RATE // 1000 // CHUNK)

        def judge(sample: int) -> float | None:
            asked[0] += 1
            if asked[0] <= frames:
                return None
            asked[0] = 0
            key = id(heard), begun[0], sample
            if key not in self.said:
                assert self.judge is not None
                self.said[key] = self.judge(heard.samples[begun[0] : sample])
            return self.said[key]

        detector = TurnDetector(self.settings, judge if self.judge else None)
        found: list[tuple[int, TurnEvent]] = []
        for probability in heard.probabilities:
            for event in detector.frame(probability):
                found.append((detector.heard, event))
                begun[0] = event.padded_sample if isinstance(event, SpeechStarted) else begun[0]
                asked[0] = 0
        return found


@dataclass(frozen=True)
class Turn:
    """A turn as found: its first sample, that of the speech it began with, and when its end was known (None: never)."""

    first: int
    speech: int
    ended: int | None


def turns(events: Sequence[tuple[int, TurnEvent]]) -> list[Turn]:
    """The turns of events."""
    found: list[Turn] = []
    for heard, event in events:
        if isinstance(event, SpeechStarted):
            found.append(Turn(event.padded_sample, event.sample, None))
        elif isinstance(event, SpeechEnded):
            found[-1] = Turn(found[-1].first, found[-1].speech, heard)
    return found


@dataclass(frozen=True)
class Outcome:
    """What became of one recording. ``missed``: speech without a turn. ``cut``: a turn was over before its speech was.
    ``clipped``: a turn began after its speech. ``false``: turns begun where nobody spoke. ``open``: no end in the 4 s
    behind the speech. ``delay_ms``: from the end of speech to the end of its turn."""

    missed: bool
    cut: bool
    clipped: bool
    false: int
    open: bool
    delay_ms: float | None


def outcome(spoken: Spoken, found: Sequence[Turn]) -> Outcome:
    """The turns found in a recording against what is known of it."""
    begun = [turn for turn in found if _in_speech(spoken, turn.speech)]
    last = next((turn for turn in begun if turn.ended is None or turn.ended >= spoken.end), None)
    delay = (last.ended - spoken.end) / RATE * 1000 if last and last.ended is not None else None
    return Outcome(
        missed=not begun,
        cut=any(turn.ended is not None and turn.ended < spoken.end for turn in begun),
        clipped=bool(begun) and begun[0].first > spoken.start,
        false=len(found) - len(begun),
        open=last is not None and last.ended is None,
        delay_ms=delay,
    )


def _in_speech(spoken: Spoken, sample: int) -> bool:
    spans = [(spoken.start, spoken.end)]
    if spoken.pause:
        spans = [(spoken.start, spoken.pause[0]), (spoken.pause[1], spoken.end)]
    return any(start - _NEAR <= sample <= end for start, end in spans)


def row(way: Way, condition: str, heard: Sequence[Heard]) -> dict[str, Any]:
    """One line of the table: shares in percent of recordings, delays in milliseconds."""
    outcomes = [(one.spoken, outcome(one.spoken, turns(way.events(one)))) for one in heard]
    delays = [result.delay_ms for _, result in outcomes if result.delay_ms is not None and not result.cut]
    whole = [result for spoken, result in outcomes if not spoken.pause]
    paused = [(spoken.pause_ms, result) for spoken, result in outcomes if spoken.pause]
    all_of = [result for _, result in outcomes]
    return {
        "way": way.name,
        "condition": condition,
        "missed %": _percent(result.missed for result in all_of),
        "false per 100": round(100 * sum(result.false for result in all_of) / len(all_of), 1),
        "clipped %": _percent(result.clipped for result in all_of),
        "cut, no pause %": _percent(result.cut for result in whole),
        **{
            f"cut, {ms} ms %": _percent(result.cut for pause, result in paused if pause == ms)
            for ms in sorted({pause for pause, _ in paused})
        },
        "cut, all pauses %": _percent(result.cut for _, result in paused),
        "open %": _percent(result.open for result in all_of),
        "delay p50": _quantile(delays, 50),
        "delay p90": _quantile(delays, 90),
    }


def _percent(found: Any) -> float:
    values = list(found)
    return round(100 * sum(values) / len(values), 1) if values else 0.0


def _quantile(values: Sequence[float], percent: int) -> int | None:
    return round(float(np.percentile(values, percent))) if values else None
