"""A request on its way through the engine."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from lluda.engine.observer import Reports
from lluda.engine.request import Lifetime, Request, SpeechChunk, Status, Token
from lluda.engine.scheduler import Entry
from lluda.engine.sequence import Sequence as TokenSequence
from lluda.engine.speech.speech import Speech
from lluda.engine.speech.talker_prefixes import TalkerPrefixes
from lluda.engine.stream import Channel


@dataclass(slots=True, eq=False)
class Job:
    """A request: its tokens, its speech, who reads them and where it stands. ``ahead``: what computes a talker's rows
    for a later answer; ``error``: why it cannot go on; ``submitted``: of ``time.monotonic()``."""

    id: int
    request: Request
    channel: Channel
    entry: Entry
    sequence: TokenSequence | None
    speech: Speech | None
    ahead: TalkerPrefixes | None = None
    submitted: float = field(default_factory=time.monotonic)
    lifetime: Lifetime = field(default_factory=Lifetime)
    error: BaseException | None = None
    _parts: deque[Sequence[tuple[int, str]]] = field(default_factory=deque)

    def refresh(self) -> None:
        """What the scheduler is to know."""
        entry, sequence, speech = self.entry, self.sequence, self.speech
        entry.stalled = self.channel.is_full
        if sequence is not None:
            entry.prompt_left = sequence.prompt_left
            entry.decoding = bool(sequence.tokens) and not sequence.finish_reason
        if speech is not None:
            entry.speaking, entry.frames_to_go = speech.is_ready, speech.frames_to_go

    @property
    def is_over(self) -> bool:
        """Whether text and speech have both ended."""
        text = self.sequence is None or bool(self.sequence.finish_reason)
        return text and (self.speech is None or (self.speech.ended and not self._parts))

    @property
    def goes_on(self) -> bool:
        """Whether it runs, and nothing went wrong."""
        return self.error is None and self.lifetime.status is Status.RUNNING

    def fail(self, error: BaseException) -> None:
        """It cannot go on; the first reason counts."""
        self.error = self.error or error

    def speak_text(self) -> None:
        """Begin with the given text."""
        self._parts.extend(self.request.text or ())
        self._push_part()
        self.go_on_speaking()  # the first part may hold nothing

    def go_on_speaking(self) -> None:
        """With the next part of the given text, where one has ended."""
        while self._parts and self.speech is not None and self.speech.ended:
            if self.speech.is_cut_off:
                self._parts.clear()
                return
            self.speech.close()
            self.speech = self.speech.following()
            self._push_part()

    def _push_part(self) -> None:
        speech = self.speech
        assert speech is not None, "a given text is spoken"
        for number, text in self._parts.popleft() if self._parts else ():
            self.channel.put(Token(self.request.index, number, text))
            speech.push_text(number)
        speech.end_text()

    def hand_out(self, chunk: SpeechChunk, reports: Reports, sample_rate: int) -> None:
        """Samples to the reader."""
        self.channel.put(chunk)
        now, until = time.monotonic(), self.entry.heard_until
        if until is None:
            reports.tell(lambda observer: observer.first_audio(now - self.submitted))
        elif now > until:
            reports.tell(lambda observer: observer.underrun())
        self.entry.heard_until = max(until or now, now) + len(chunk.samples) / sample_rate
