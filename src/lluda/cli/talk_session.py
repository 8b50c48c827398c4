"""The turns of ``lluda talk``: who speaks, and what becomes of an answer that is interrupted."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from lluda.cli.console import say
from lluda.engine.listening.turn_detector import (
    TAIL,
    SpeechEnded,
    SpeechPaused,
    SpeechResumed,
    SpeechStarted,
    TurnDetector,
    TurnSettings,
)
from lluda.engine.listening.turn_end import likely_over
from lluda.engine.request import SpeechChunk, Token
from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.errors import LludaError
from lluda.inputs.media.microphone import RATE
from lluda.serving.realtime.conversation.truncation import heard_text, likely_seconds

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lluda.api.model import Model
    from lluda.engine.listening.listener import Listener
    from lluda.engine.listening.turn_end import Eagerness
    from lluda.engine.speech.speech_params import SpeechParams
    from lluda.outputs.player import Player


VERBATIM = "Write what you hear."
MAX_WORDS = 200
"""Tokens of it."""


@dataclass(frozen=True, slots=True)
class TalkOptions:
    """How answers are made: their text, their speech and its ``speaker``; ``chat``: fields of ChatOptions.
    ``interrupts``: whether the microphone is heard while an answer is made or sounds."""

    sampling: SamplingParams
    speech: SpeechParams
    speaker: str | None = None
    chat: Mapping[str, Any] = field(default_factory=dict)
    interrupts: bool = True


class _Answer:
    """One that is being made: ``text`` and ``samples`` so far, until it ``is_spoken``; ``over`` ends it at its next
    event."""

    def __init__(self, asked_at: float) -> None:
        self.asked_at = asked_at
        """When the user had said the last word, by the monotonic clock."""
        self.text = ""
        self.samples = 0
        self.over = self.is_spoken = False
        self.error: BaseException | None = None
        self.thread: threading.Thread | None = None


class TalkSession:
    """`hear` takes the microphone's blocks, in real time; answers are made and played beside it. A context that ends
    the answer under way. Errors of an answer are raised by the next `hear`, or by `wait`."""

    def __init__(
        self,
        model: Model,
        player: Player,
        how: TalkOptions,
        *,
        system: str | None = None,
        eagerness: Eagerness = "medium",
    ) -> None:
        self.conversation = model.conversation(system, **how.chat)
        self._model, self._player, self._how, self._rate = model, player, how, model.speech_stack().sample_rate
        self._unclear = model.unclear_answer
        judge = self._judge if self._unclear is not None else None
        self._turns = TurnDetector(TurnSettings(eagerness=eagerness), judge)
        self._recent: list[NDArray[np.float32]] = []
        self._recent_from = 0
        self._listener: Listener | None = None
        self._turn_from = 0
        self._answer: _Answer | None = None

    def hear(self, block: NDArray[np.float32]) -> None:
        """The next samples of the microphone, mono at 16 kHz."""
        self._check()
        if not self._how.interrupts and self._is_answering():
            block = block * 0
        self._turns.speaking_back = self._player.is_playing
        self._recent.append(block)
        if self._listener is not None:
            self._listener.push(block)
        for event in self._turns.push(block):
            self._follow(event)
        self._forget()

    def wait(self) -> None:
        """Until the answer under way was made and played."""
        answer = self._answer
        if answer is not None and answer.thread is not None:
            answer.thread.join()
            self._player.wait()
        self._check()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._listener is not None:
            self._listener.discard()
        self._end_answer()
        self._player.flush()

    def _is_answering(self) -> bool:
        answer = self._answer
        return self._player.is_playing or (answer is not None and answer.thread is not None and not answer.is_spoken)

    def _check(self) -> None:
        for error in (self._player.error, self._answer.error if self._answer else None):
            if error is not None:
                raise error

    def _follow(self, event: Any) -> None:
        match event:
            case SpeechStarted():
                self._interrupt()
                self._begin_turn(event.padded_sample)
            case SpeechPaused():
                assert self._listener is not None, "a pause is of a turn"
                self._listener.expect_end(event.sample - self._turn_from)
            case SpeechResumed():
                assert self._listener is not None, "so is its end"
                self._listener.expect_end(None)
            case SpeechEnded():
                self._end_turn(event.sample)

    def _judge(self, _: int) -> float | None:
        """How likely the open turn is over at its pause, which its listener was told of."""
        token = self._listener.first_token if self._listener is not None else None
        return None if token is None or self._unclear is None else likely_over(token.top, self._unclear.id)

    def _begin_turn(self, first: int) -> None:
        """Listen from sample ``first`` on, which was heard already."""
        import numpy as np

        self._listener = self._model.listen(self.conversation.messages, spoken=True, judged=True, **self._how.chat)
        self._turn_from = first
        self._listener.push(np.concatenate(self._recent)[first - self._recent_from :])

    def _end_turn(self, end: int) -> None:
        assert self._listener is not None, "a turn ends that began"
        source = self._listener.finish(end - self._turn_from)
        self._listener = None
        silent = (self._turns.heard - (end - TAIL)) / RATE
        self._answer = answer = _Answer(time.monotonic() - silent)
        sound = {"type": "audio", "audio": source}
        self._player.begin()
        answer.thread = threading.Thread(target=self._make, args=(answer, sound), name="lluda answer", daemon=True)
        answer.thread.start()

    def _make(self, answer: _Answer, sound: dict[str, Any]) -> None:
        """On a thread of its own: the answer, then in writing what it was to, until it is over."""
        try:
            self._speak(answer, sound)
            answer.is_spoken = True
            self._write_down(answer, sound)
        except LludaError as error:  # of this turn: the next may be another
            answer.is_spoken = True
            say(str(error))
        except BaseException as error:
            answer.error = error

    def _speak(self, answer: _Answer, sound: dict[str, Any]) -> None:
        how, turn = self._how, [{"role": "user", "content": [sound]}]
        events = self.conversation.send_spoken(turn, how.sampling, how.speech, speaker=how.speaker)
        try:
            for event in events:
                if answer.over:
                    break
                if isinstance(event, Token):
                    answer.text += event.text
                    print(event.text, end="", flush=True)
                elif isinstance(event, SpeechChunk):
                    answer.samples += len(event.samples)
                    self._player.play(event.samples)
        finally:
            events.close()  # type: ignore[attr-defined]  # writes the turn into the conversation
            print(flush=True)

    def _write_down(self, answer: _Answer, sound: dict[str, Any]) -> None:
        question = [{"role": "user", "content": [sound, {"type": "text", "text": VERBATIM}]}]
        text = ""
        for event in self._model.chat_stream(question, SamplingParams(temperature=0.0, max_tokens=MAX_WORDS)):
            if answer.over:
                return
            if isinstance(event, Token):
                text += event.text
        began = self._player.began
        first_sound = "" if began is None else f" (first sound {began - answer.asked_at:.2f} s after the last word)"
        say(f"{text.strip()}{first_sound}", "you")

    def _interrupt(self) -> None:
        """The user speaks: nothing more is played, and of the answer stays what was heard."""
        answer, was_playing = self._answer, self._player.is_playing
        making = self._end_answer()
        if answer is None or not (was_playing or making):
            return
        played = self._player.played / self._rate
        heard = heard_text(answer.text, played, likely_seconds(answer.text, answer.samples / self._rate))
        *before, last = self.conversation.messages
        if last["role"] == "assistant":
            self.conversation.messages = [*before, {**last, "content": heard}]
        say(f"interrupted after {played:.1f} s: {heard or 'nothing of it was heard'}")

    def _end_answer(self) -> bool:
        """Whether one was still being made, and is no longer."""
        answer, self._answer = self._answer, None
        if answer is None or answer.thread is None:
            return False
        making = answer.thread.is_alive()
        answer.over = True
        self._player.flush()
        answer.thread.join()
        self._player.flush()  # what came before it saw that it is over
        return making

    def _forget(self) -> None:
        """Drop sound that no turn can begin with any more."""
        needed = self._turns.needed_from
        while self._recent and self._recent_from + len(self._recent[0]) <= needed:
            self._recent_from += len(self._recent.pop(0))
