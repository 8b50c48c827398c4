"""The input side of a session: the buffer of what the user says, and where turns begin and end in it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lluda.engine.listening.turn_detector import (
    TAIL,
    SpeechAwaited,
    SpeechEnded,
    SpeechPaused,
    SpeechResumed,
    SpeechStarted,
    TurnDetector,
    TurnEvent,
    TurnSettings,
)
from lluda.engine.listening.turn_end import likely_over
from lluda.serving.http.errors import invalid
from lluda.serving.realtime.conversation.conversation import user_sound
from lluda.serving.realtime.conversation.items import MessageItem, new_id
from lluda.serving.realtime.events.server_events import ServerEvent, SpeechStopped, TimeoutTriggered
from lluda.serving.realtime.events.server_events import SpeechStarted as StartedEvent
from lluda.serving.realtime.events.session_fields import SemanticVad, ServerVad
from lluda.serving.realtime.session_settings import SessionSettings, SoundFormat
from lluda.serving.realtime.turns.sound_buffer import SoundBuffer
from lluda.serving.realtime.turns.sound_format import HEARD_RATE, SoundDecoder

if TYPE_CHECKING:
    from lluda.engine.listening.listener import Listener
    from lluda.serving.limits import Limits

_PIECE_SECONDS = 0.1
"""Of sound that is looked at before others have a turn."""

_LEAST_SECONDS = 0.1
"""A turn that a client commits is longer."""

_RELISTENED_SECONDS = 8.0
"""Of a turn, that are heard again behind a conversation that has changed: a window of the encoder."""

_LEAVING, _BEHIND_SECONDS = 4, 0.01
"""Turns that are over and still being worked on: with more of them a client that makes so many waits."""

_KEPT_SECONDS = 60.0
"""Of sound in which nobody speaks, that a client may still commit."""


@dataclass(slots=True, eq=False)
class _OpenTurn:
    """A turn that began at sample ``start``, of which those before ``pushed`` were heard."""

    start: int
    pushed: int
    spoken: Listener
    id: str


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn that is over. ``answers``: the session's settings say that an answer follows; ``ended_at``: when the user
    said the last of it, by ``time.monotonic``."""

    item: MessageItem
    answers: bool
    ended_at: float
    stopped: ServerEvent | None = None


@dataclass(frozen=True, slots=True)
class TurnBegun:
    """Somebody speaks. ``interrupts``: what is being answered is of no interest any more."""

    event: StartedEvent
    interrupts: bool


class InputTurns:
    """`append` what comes; ``begun`` and ``over`` are told of turns that were found in it. ``listen`` opens a turn.
    ``unclear``: the id that the model's answers begin with where it understood nothing (None: it has none), by which
    it is judged whether a turn is over."""

    def __init__(
        self,
        settings: SessionSettings,
        limits: Limits,
        listen: Callable[[], Listener],
        begun: Callable[[TurnBegun], object],
        over: Callable[[Turn], object],
        unclear: int | None = None,
    ) -> None:
        self._limits, self._listen, self._begun, self._over = limits, listen, begun, over
        self._unclear = unclear
        self._buffer = SoundBuffer()
        self._turn: _OpenTurn | None = None
        self._leaving: list[Listener] = []
        self._is_outdated = False
        self._format: SoundFormat | None = None
        self._detection: ServerVad | SemanticVad | None = None
        self._detector: TurnDetector | None = None
        self.configure(settings)

    def configure(self, settings: SessionSettings) -> None:
        """What holds from the next sound on. The buffer is kept; other rules of turns begin anew with it."""
        if settings.input_format != self._format:
            self._format = settings.input_format
            self._decoder = SoundDecoder(self._format.type, self._format.rate)  # type: ignore[arg-type]
        if settings.turn_detection != self._detection or self._detector is None:
            self._detection = settings.turn_detection
            self._forget_turn()
            self._detector = None
            if self._detection is not None:
                judge = self._judge if self._unclear is not None else None
                self._detector = TurnDetector(_turn_settings(self._detection), judge, first_sample=self._buffer.end)

    def answering(self, sounding: bool) -> None:
        """Whether an answer of ours sounds at the user's."""
        if self._detector is not None:
            self._detector.speaking_back = sounding

    def await_speech(self, after_seconds: float) -> None:
        """An answer is over, and sounds for so long yet: from then on the user is waited for."""
        if self._detector is not None:
            self._detector.await_speech(int(1000 * after_seconds))

    def close(self) -> None:
        """Nobody speaks any more."""
        self._forget_turn()

    def listen_again(self) -> None:
        """The conversation before the open turn has changed: it is heard behind the new one when more of it comes. Of a
        long turn too much was heard for that; it is read again when it is answered."""
        self._is_outdated = self._turn is not None

    @property
    def is_behind(self) -> bool:
        """Whether many turns that are over are still being worked on: nobody should begin more of them."""
        self._leaving = [spoken for spoken in self._leaving if not spoken.settled(0)]
        return len(self._leaving) > _LEAVING

    async def append(self, data: bytes) -> None:
        """More sound, in the input format. ApiError 400: a file, half a sample, or no room without a turn's end."""
        assert self._format is not None, "set by configure"
        width = self._format.sample_bytes
        if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
            words = "audio is a WAV file; append its samples alone, or send the file in a message's input_audio"
            raise invalid(words, "audio", "invalid_media")
        if len(data) % width:
            words = f"audio has {len(data)} bytes, which are no whole samples of {width} bytes"
            raise invalid(words, "audio", "invalid_media")
        seconds = len(data) / width / self._format.rate
        held = (self._buffer.end - self._buffer.start) / HEARD_RATE
        if self._detector is None and held + seconds > self._limits.realtime_buffer_seconds:
            words = (
                f"the buffer holds {held:.0f} s, and at most {self._limits.realtime_buffer_seconds:g} s; "
                "commit or clear it"
            )
            raise invalid(words, "audio", "input_audio_buffer_full")
        step = int(_PIECE_SECONDS * self._format.rate) * width
        for start in range(0, len(data), step):
            if start:
                await asyncio.sleep(0)
            while self.is_behind:
                await asyncio.sleep(_BEHIND_SECONDS)
            self._hear(data[start : start + step])

    def commit(self) -> Turn:
        """The client says that the turn is over. ApiError 400: there is none."""
        start = self._buffer.start if self._turn is None else self._turn.start
        seconds = (self._buffer.end - start) / HEARD_RATE
        if seconds < _LEAST_SECONDS:
            words = (
                f"the buffer has {1000 * seconds:.0f} ms of sound; a turn needs {1000 * _LEAST_SECONDS:.0f} ms at least"
            )
            raise invalid(words, None, "input_audio_buffer_commit_empty")
        if self._turn is None:
            self._open(start)
        item = self._close(self._buffer.end)
        if self._detector is not None:
            self._detector.reset()
        return Turn(item, answers=False, ended_at=time.monotonic())

    def clear(self) -> None:
        """Forget what was appended."""
        self._forget_turn()
        self._buffer.forget(self._buffer.end)
        if self._detector is not None:
            self._detector.reset()

    def _hear(self, data: bytes) -> None:
        samples = self._decoder.push(data)
        self._buffer.add(samples)
        self._refresh()
        if self._detector is None:
            if self._turn is None and self._buffer.end > self._buffer.start:
                self._open(self._buffer.start)
        else:
            for event in self._detector.push(samples):
                self._take(event)
            if self._turn is None:
                kept = self._buffer.end - int(_KEPT_SECONDS * HEARD_RATE)
                self._buffer.forget(min(kept, self._detector.needed_from))
        self._push()

    def _judge(self, _: int) -> float | None:
        """How likely the open turn is over at its pause, which its listener was told of."""
        token = self._turn.spoken.first_token if self._turn is not None else None
        return None if token is None or self._unclear is None else likely_over(token.top, self._unclear)

    def _take(self, event: TurnEvent) -> None:
        match event:
            case SpeechStarted():
                assert self._detection is not None, "found by rules of turns"
                number = new_id("item")
                told = StartedEvent(item_id=number, audio_start_ms=_ms(event.padded_sample))
                # What is being answered may end here, and with it the conversation that the turn is heard behind.
                self._begun(TurnBegun(told, self._detection.interrupt_response))
                self._open(event.padded_sample, number)
            case SpeechPaused() if self._turn is not None:
                self._push()
                self._turn.spoken.expect_end(event.sample - self._turn.start)
            case SpeechResumed() if self._turn is not None:
                self._turn.spoken.expect_end(None)
            case SpeechEnded() if self._turn is not None:
                number = self._turn.id
                self._end(
                    self._close(event.sample),
                    event.sample,
                    SpeechStopped(item_id=number, audio_end_ms=_ms(event.sample)),
                )
            case SpeechAwaited():
                number = new_id("item")
                told_end = TimeoutTriggered(
                    item_id=number, audio_start_ms=_ms(event.from_sample), audio_end_ms=_ms(event.sample)
                )
                self._end(MessageItem("user", [], number), event.sample, told_end)

    def _end(self, item: MessageItem, sample: int, told: ServerEvent) -> None:
        assert self._detection is not None, "found by rules of turns"
        ended_at = self._buffer.arrival(max(0, sample - TAIL))
        self._over(Turn(item, self._detection.create_response, ended_at, told))

    def _open(self, start: int, number: str | None = None) -> None:
        self._turn = _OpenTurn(start, start, self._listen(), number or new_id("item"))

    def _refresh(self) -> None:
        """Hear the open turn behind the conversation as it is now, if that has changed."""
        turn = self._turn
        if self._is_outdated and turn is not None and turn.pushed - turn.start < _RELISTENED_SECONDS * HEARD_RATE:
            self._discard(turn.spoken)
            turn.spoken, turn.pushed = self._listen(), turn.start
        self._is_outdated = False

    def _discard(self, spoken: Listener) -> None:
        spoken.discard()
        self._leaving.append(spoken)

    def _push(self) -> None:
        turn = self._turn
        if turn is not None and turn.pushed < self._buffer.end:
            turn.spoken.push(self._buffer.between(turn.pushed, self._buffer.end))
            turn.pushed = self._buffer.end

    def _close(self, end: int) -> MessageItem:
        """The open turn, which ends before sample ``end``, as an item."""
        self._push()
        turn, self._turn = self._turn, None
        assert turn is not None, "a turn is open"
        source = turn.spoken.finish(end - turn.start)
        self._leaving.append(turn.spoken)
        samples = self._buffer.between(turn.start, end)
        self._buffer.forget(end)
        return MessageItem("user", [user_sound(samples, source)], turn.id)

    def _forget_turn(self) -> None:
        if self._turn is not None:
            self._discard(self._turn.spoken)
            self._turn = None


def _turn_settings(detection: ServerVad | SemanticVad) -> TurnSettings:
    if isinstance(detection, SemanticVad):
        return TurnSettings(eagerness="medium" if detection.eagerness == "auto" else detection.eagerness)
    return TurnSettings(
        threshold=detection.threshold,
        prefix_padding_ms=detection.prefix_padding_ms,
        silence_duration_ms=detection.silence_duration_ms,
        idle_timeout_ms=detection.idle_timeout_ms,
    )


def _ms(samples: int) -> int:
    return samples * 1000 // HEARD_RATE
