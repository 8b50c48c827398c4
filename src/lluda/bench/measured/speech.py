"""What speech, sound and pictures cost: talker, code predictor, code2wav and both encoders by themselves, requests to
speak a text, and a turn of a conversation with sound in and speech out."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from lluda.bench.process.job import Job, Sample
from lluda.bench.session import EngineInfo

if TYPE_CHECKING:
    from torch import Tensor

PROMPT_ROWS = 60
FRAMES, TURN_FRAMES = 40, 100
ANSWERS, CAPTURED_ANSWERS = (1, 4), (1, 2, 4, 8, 16)
"""Spoken together, the latter where their frames are launched whole."""
CONVERSATIONS = 8
"""That speak at once, in requests of their own."""
BATCH = 25
"""Frames in one forward of code2wav: a batch of transformers' ``chunked_decode`` without its context."""
MEL_FRAMES = 1000
"""Log-mel frames of ten seconds of sound."""
PICTURE_SIDE = 1024
"""Pixels of a picture's sides."""

_WARM_UP = 2
_SHORT_REPEATS = 5
_FIRST_FRAMES = 1


@dataclass(frozen=True, slots=True)
class SpeechTraffic:
    """Bytes of weights that are read by the code predictor for a frame, and by the talker for a step."""

    code_predictor: float
    talker: float


class SpeechSession(ABC):
    """An Omni model that can be timed a component at a time. A component is loaded when it is first used, so that a
    test holds in memory what it needs."""

    splits_frames = True
    """Whether `frame` and `step` can be timed apart; not where both are one launch of a captured graph."""

    @property
    @abstractmethod
    def info(self) -> EngineInfo:
        """What is opened."""

    @property
    @abstractmethod
    def traffic(self) -> SpeechTraffic:
        """What a frame reads."""

    @abstractmethod
    def start(self, rows: int) -> None:
        """Run a prompt of ``rows`` rows through the talker; room for ``FRAMES`` and the warm-up follows it."""

    @abstractmethod
    def frame(self) -> None:
        """Sample a frame's codes: the talker's, then those of all passes of the code predictor."""

    @abstractmethod
    def step(self) -> None:
        """One step of the talker, after the last frame's codes and a row of text."""

    @abstractmethod
    def vocode(self, frames: int) -> None:
        """The waveform of so many frames, whole."""

    @abstractmethod
    def encode_audio(self, frames: int) -> None:
        """The audio encoder's rows of so many log-mel frames of silence."""

    @abstractmethod
    def encode_picture(self, side: int) -> None:
        """The vision encoder's rows of a square picture of about so many pixels, of whose patches the host has the
        values."""


class StreamingSession(SpeechSession):
    """One that speaks while it makes the speech."""

    @abstractmethod
    def push(self) -> None:
        """One more frame of a running waveform."""

    @abstractmethod
    def speak(self, frames: int) -> tuple[float, float]:
        """So many frames of a text, as one request: seconds to the first samples, and seconds of work for a second of
        sound."""

    @abstractmethod
    def start_together(self, answers: int) -> Callable[[], None]:
        """So many answers after a prompt of ``PROMPT_ROWS`` rows each; what makes the next frame of them all."""

    @abstractmethod
    def start_streams(self, streams: int) -> Callable[[], None]:
        """So many running waveforms; what makes the samples of the next frame of them all."""

    @abstractmethod
    def speak_together(self, answers: int, frames: int) -> tuple[float, float]:
        """So many requests at once, of so many frames each: seconds to the first samples of the last to have some, and
        how many seconds before they are to be heard the samples come that come latest (negative: there was a gap)."""

    @abstractmethod
    def turn(self) -> tuple[float, float]:
        """A turn of a conversation, ``MEL_FRAMES`` of sound in and ``TURN_FRAMES`` of speech out: seconds from the
        log-mel frames to the first samples, and seconds of work for a second of sound."""

    @abstractmethod
    def waits(self) -> float | None:
        """How often the host waits for the device in a frame, beside the wait for the codes at the frame's end; None
        where frames are not captured."""


def prompt_rows(rows: int, width: int) -> Tensor:
    """The same ``[rows, width]``, float32, for every engine."""
    import torch

    return torch.randn(rows, width, generator=torch.Generator().manual_seed(7))


def measure_speech(
    job: Job, open_session: Callable[[Job], SpeechSession], opened: Callable[[SpeechSession], None]
) -> Iterator[Sample]:
    """Open the engine and run the job's tests of speech and sound ``job.rounds`` times; ``opened`` gets the session.

    * ``code_predictor``: ms a frame, all codes and their sampling; ``talker``: ms a step; ``speech_frame``: both, from
      one frame's codes to the next's: medians of 40 after a prompt of 60 rows;
    * ``frames1``, ``frames4``, …: ms a frame of so many answers together, talker and code predictor;
    * ``code2wav1``: ms a frame, one frame a push in a running stream; ``code2wav25``: ms a frame, 25 frames whole;
    * ``code2wav_streams2``, …: ms a frame of so many running streams together, where frames are captured;
    * ``first_audio``: seconds from a request to speak a text to its first samples, median of five;
    * ``rtf``: seconds of work for each second of sound, over 40 frames of such a request;
    * ``speakers8_first_audio``, ``speakers8_margin``: seconds to the first samples of the last of 8 such requests at
      once, and from the samples that come latest to when they are to be heard, where frames are captured;
    * ``audio10s``: ms of the audio encoder for ten seconds of sound, median of five;
    * ``vision1024``: ms of the vision encoder for a picture of 1,024 x 1,024 pixels, median of five;
    * ``turn_first_audio`` and ``turn_rtf``: the same as ``first_audio`` and ``rtf`` of a turn of a conversation, from
      ten seconds of sound on, once each after a turn to warm up;
    * ``frame_waits``: how often the host waits for the device in a captured frame.

    Where an engine does not stream, ``code2wav1``, ``first_audio``, ``rtf`` and the turn are left out.
    """
    session, tests = open_session(job), job.plan.tests
    opened(session)
    for number in range(job.rounds):
        if "speech" in tests:
            yield from _frames(session)
            if isinstance(session, StreamingSession):
                yield from _frames_together(session)
            yield from _waveform(session)
        if "audio" in tests:
            yield Sample("audio10s", _median_ms(lambda: session.encode_audio(MEL_FRAMES), _SHORT_REPEATS), "ms")
        if "vision" in tests:
            encoded = _median_ms(lambda: session.encode_picture(PICTURE_SIDE), _SHORT_REPEATS)
            yield Sample(f"vision{PICTURE_SIDE}", encoded, "ms")
        if isinstance(session, StreamingSession):
            yield from _requests(session, tests, is_first=number == 0)
    # Last: what the profiler leaves behind is in no time above.
    if "speech" in tests and isinstance(session, StreamingSession) and (waits := session.waits()) is not None:
        yield Sample("frame_waits", waits, "waits")


def _frames(session: SpeechSession) -> Iterator[Sample]:
    session.start(PROMPT_ROWS)
    times = [(_seconds(session.frame), _seconds(session.step)) for _ in range(_WARM_UP + FRAMES)][_WARM_UP:]
    if session.splits_frames:
        predictor, talker = (1e3 * median(each) for each in zip(*times, strict=True))
        yield Sample("code_predictor", predictor, "ms", session.traffic.code_predictor)
        yield Sample("talker", talker, "ms", session.traffic.talker)
    reads = session.traffic.code_predictor + session.traffic.talker
    yield Sample("speech_frame", 1e3 * median(map(sum, times)), "ms", reads)


def _frames_together(session: StreamingSession) -> Iterator[Sample]:
    """Of few and of many answers in turn, so that what else the machine does meets all."""
    numbers = ANSWERS if session.splits_frames else CAPTURED_ANSWERS
    frames = {answers: session.start_together(answers) for answers in numbers}
    times: dict[int, list[float]] = {answers: [] for answers in numbers}
    for _ in range(_WARM_UP + FRAMES):
        for answers, frame in frames.items():
            times[answers].append(_seconds(frame))
    for answers, own in times.items():
        yield Sample(f"frames{answers}", 1e3 * median(own[_WARM_UP:]), "ms")


def _waveform(session: SpeechSession) -> Iterator[Sample]:
    if isinstance(session, StreamingSession):
        yield Sample("code2wav1", _median_ms(session.push, FRAMES), "ms")
        for streams in () if session.splits_frames else CAPTURED_ANSWERS[1:]:
            yield Sample(f"code2wav_streams{streams}", _median_ms(session.start_streams(streams), FRAMES), "ms")
    whole = _median_ms(lambda: session.vocode(BATCH), _SHORT_REPEATS)
    yield Sample(f"code2wav{BATCH}", whole / BATCH, "ms")


def _requests(session: StreamingSession, tests: Collection[str], *, is_first: bool) -> Iterator[Sample]:
    if "speech" in tests:
        session.speak(_FIRST_FRAMES)
        first = median(session.speak(_FIRST_FRAMES)[0] for _ in range(_SHORT_REPEATS))
        yield Sample("first_audio", first, "s")
        yield Sample("rtf", session.speak(FRAMES)[1], "of real time")
        if not session.splits_frames:
            if is_first:
                session.speak_together(CONVERSATIONS, FRAMES)
            last, margin = session.speak_together(CONVERSATIONS, FRAMES)
            yield Sample(f"speakers{CONVERSATIONS}_first_audio", last, "s")
            yield Sample(f"speakers{CONVERSATIONS}_margin", margin, "s")
    if "turn" in tests:
        if is_first:
            session.turn()
        first, factor = session.turn()
        yield Sample("turn_first_audio", first, "s")
        yield Sample("turn_rtf", factor, "of real time")


def _median_ms(work: Callable[[], None], count: int) -> float:
    return 1e3 * median([_seconds(work) for _ in range(_WARM_UP + count)][_WARM_UP:])


def _seconds(work: Callable[[], None]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun
