"""Where a user's turn starts, pauses and ends in a stream of sound.

A state machine over the probabilities of speech of `VoiceDetector`, one of each 32 ms. Its rules are those of
server-side voice activity detection elsewhere (OpenAI's realtime API, vLLM-Omni, Silero's own VADIterator):

- Speech starts with 3 probabilities in a row of at least the threshold.
- Silence starts with a probability below the threshold by 0.15, and is over with one at the threshold. What lies
  between changes neither: a silence goes on.
- A turn ends with a silence of ``silence_duration_ms``, rounded up to 32 ms, or of what `turn_end` says.

It counts in samples of the stream, and has no clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lluda.engine.listening.turn_end import WAITS, Eagerness, Judge, silence_ms
from lluda.engine.listening.vad import CHUNK, RATE, VoiceDetector
from lluda.errors import InvalidRequest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PREFIX_PADDING_MS = (0, 2000)
SILENCE_DURATION_MS = (100, 5000)
IDLE_TIMEOUT_MS = (5000, 30_000)
"""Least and most of the settings of these names."""

TAIL = RATE // 5
"""Samples behind the end of speech that belong to a turn: 200 ms. They are there when the pause is found, so what a
turn holds is known before it is known that the turn is over."""

LONGEST_TURN = 600 * RATE
"""Samples; a turn that is longer is ended where it is."""

_FRAMES_TO_START = 3
_FRAMES_TO_START_OVER_OWN_SPEECH = 5
_OVER_OWN_SPEECH = 0.1
"""While our own speech sounds, what is heard may be its echo: it takes a threshold higher by this (at most
`_HIGHEST`, so that it can still be reached) and more frames."""
_HIGHEST = 0.95
_HYSTERESIS = 0.15
_LEAST_PROBABILITY = 0.01


@dataclass(frozen=True, slots=True)
class TurnSettings:
    """``threshold``: probability, 0 to 1, from which a frame is speech. ``prefix_padding_ms`` of sound before speech
    belong to the turn. ``eagerness`` None: ``silence_duration_ms`` of silence end it (server VAD); else `turn_end`
    says what does (semantic VAD). ``idle_timeout_ms``: `SpeechAwaited` after so long (None: never).

    InvalidRequest: a value out of range.
    """

    threshold: float = 0.5
    prefix_padding_ms: int = 300
    silence_duration_ms: int = 500
    idle_timeout_ms: int | None = None
    eagerness: Eagerness | None = None

    def __post_init__(self) -> None:
        _check("threshold", self.threshold, (0, 1))
        _check("prefix_padding_ms", self.prefix_padding_ms, PREFIX_PADDING_MS)
        _check("silence_duration_ms", self.silence_duration_ms, SILENCE_DURATION_MS)
        if self.idle_timeout_ms is not None:
            _check("idle_timeout_ms", self.idle_timeout_ms, IDLE_TIMEOUT_MS)
        if self.eagerness is not None and self.eagerness not in WAITS:
            raise InvalidRequest(f"eagerness must be one of {', '.join(WAITS)}, not {self.eagerness!r}")


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """A turn began: speech at ``sample``, the turn's sound at ``padded_sample``, never inside the turn before."""

    sample: int
    padded_sample: int


@dataclass(frozen=True, slots=True)
class SpeechPaused:
    """A silence of `TAIL` was heard. If the turn is over, its sound ends before ``sample``: the `SpeechEnded` that
    follows says the same, unless `SpeechResumed` comes before it."""

    sample: int


@dataclass(frozen=True, slots=True)
class SpeechResumed:
    """Speech went on at ``sample`` after a `SpeechPaused`."""

    sample: int


@dataclass(frozen=True, slots=True)
class SpeechEnded:
    """The turn is over; its sound ends before ``sample``, which lies before what was heard meanwhile."""

    sample: int


@dataclass(frozen=True, slots=True)
class SpeechAwaited:
    """No speech since ``from_sample``, where `TurnDetector.await_speech` began to wait, until ``sample``."""

    from_sample: int
    sample: int


TurnEvent = SpeechStarted | SpeechPaused | SpeechResumed | SpeechEnded | SpeechAwaited


class TurnDetector:
    """One stream of sound: `push` its samples in order, as they come.

    ``judge`` is asked at a pause, if ``eagerness`` is set. ``first_sample``: the number of the first sample pushed.
    Set ``speaking_back`` while our own speech sounds at the user's.
    """

    _waiting: int  # samples behind the last whole frame
    _turn_start: int | None
    _silent_from: int | None
    _awaited_from: int | None
    _probability: float | None  # that the turn is over, once the judge knows

    def __init__(self, settings: TurnSettings, judge: Judge | None = None, *, first_sample: int = 0) -> None:
        self.settings = settings
        self.speaking_back = False
        self._judge = judge
        self._forget(first_sample)

    @property
    def heard(self) -> int:
        """The number of the next sample that is pushed."""
        return self._position + self._waiting

    @property
    def speaking(self) -> bool:
        """Whether a turn has begun and not ended."""
        return self._turn_start is not None

    @property
    def needed_from(self) -> int:
        """The first sample that may belong to a turn that is not over; those before it can be forgotten."""
        if self._turn_start is not None:
            return self._turn_start
        return max(self._floor, self._position - self._loud * CHUNK - self._padding)

    def push(self, samples: NDArray[np.float32]) -> list[TurnEvent]:
        """``samples [n]``, mono float32 at 16 kHz, full scale 1. What was found in the whole frames they complete; the
        cut into pushes changes nothing."""
        found: list[TurnEvent] = []
        start = 0
        while start < len(samples):
            # By single frames: several at once are rounded otherwise.
            piece = samples[start : start + CHUNK - self._waiting]
            start += len(piece)
            self._waiting += len(piece)
            for probability in self._voice.push(piece):
                self._waiting = 0
                found += self.frame(float(probability))
        return found

    def frame(self, probability: float) -> list[TurnEvent]:
        """The next 512 samples hold speech with this probability. Called by `push`."""
        self._position += CHUNK
        if self._turn_start is None:
            return self._idle_frame(probability)
        if probability >= self.settings.threshold:
            return self._speech_frame() + self._forced_end()
        if probability < max(self.settings.threshold - _HYSTERESIS, _LEAST_PROBABILITY):
            return self._silent_frame() or self._forced_end()
        return self._forced_end()

    def await_speech(self, after_ms: int = 0) -> None:
        """From ``after_ms`` behind what was heard, wait for speech: `SpeechAwaited` comes where none starts within
        ``idle_timeout_ms``. Called when an answer is over, with how long its sound still plays."""
        self._awaited_from = self.heard + after_ms * RATE // 1000

    def reset(self) -> None:
        """Forget the open turn and what the network remembers. A turn that starts later begins after what was heard;
        numbers of samples go on."""
        self._forget(self.heard)

    @property
    def _padding(self) -> int:
        return self.settings.prefix_padding_ms * RATE // 1000

    def _forget(self, sample: int) -> None:
        self._voice = VoiceDetector()
        self._position = sample  # end of the last whole frame
        self._waiting = 0
        self._awaited_from = None
        self._end_turn(sample)

    def _end_turn(self, floor: int) -> None:
        self._floor = floor  # no turn begins before it
        self._loud = 0  # frames of speech in a row
        self._turn_start = None
        self._end_silence()

    def _end_silence(self) -> None:
        self._silent_from = None
        self._paused = False
        self._probability = None

    def _idle_frame(self, probability: float) -> list[TurnEvent]:
        threshold, frames = self.settings.threshold, _FRAMES_TO_START
        if self.speaking_back:
            threshold = max(threshold, min(threshold + _OVER_OWN_SPEECH, _HIGHEST))
            frames = _FRAMES_TO_START_OVER_OWN_SPEECH
        self._loud = self._loud + 1 if probability >= threshold else 0
        if self._loud < frames:
            return self._awaited()
        start = self._position - self._loud * CHUNK
        self._turn_start = max(self._floor, start - self._padding)
        self._awaited_from = None
        return [SpeechStarted(start, self._turn_start)]

    def _awaited(self) -> list[TurnEvent]:
        start, timeout = self._awaited_from, self.settings.idle_timeout_ms
        if start is None or timeout is None or self._loud or self._position - start < timeout * RATE // 1000:
            return []
        self._awaited_from = None
        return [SpeechAwaited(start, self._position)]

    def _speech_frame(self) -> list[TurnEvent]:
        paused = self._paused
        self._end_silence()
        return [SpeechResumed(self._position - CHUNK)] if paused else []

    def _silent_frame(self) -> list[TurnEvent]:
        if self._silent_from is None:
            self._silent_from = self._position - CHUNK
        silence = self._position - self._silent_from
        end = self._silent_from + min(silence, TAIL)
        found: list[TurnEvent] = []
        if silence >= TAIL and not self._paused:
            self._paused = True
            found.append(SpeechPaused(end))
        if silence >= self._enough_silence(end) * RATE // 1000:
            self._end_turn(end)
            found.append(SpeechEnded(end))
        return found

    def _enough_silence(self, end: int) -> int:
        """Milliseconds of silence that end the turn now, whose sound ends before ``end`` if it does."""
        eagerness = self.settings.eagerness
        if eagerness is None:
            return self.settings.silence_duration_ms
        if self._judge is not None and self._paused and self._probability is None:
            self._probability = self._judge(end)
        return silence_ms(eagerness, self._probability)

    def _forced_end(self) -> list[TurnEvent]:
        assert self._turn_start is not None
        longest = self._turn_start + LONGEST_TURN
        if self._position < longest:
            return []
        self._end_turn(longest)
        return [SpeechEnded(longest)]


def _check(name: str, value: float, limits: tuple[int, int]) -> None:
    least, most = limits
    if not least <= value <= most:
        raise InvalidRequest(f"{name} must be {least} to {most}, not {value}")
