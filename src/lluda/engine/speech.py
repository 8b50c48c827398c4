"""Speech while the text is still being written: thinker, talker, code predictor and code2wav take turns.

One thread runs them all. Each turn the thinker adds a token, the talker and its predictor a frame, and code2wav the
samples that the frame completes; so speech begins with the first token of text, nothing runs ahead without bound, a
consumer that stops asking stops everything within a frame, and an error in one stage ends the request in all. Where the
stages share one memory bus, taking turns costs nothing against running side by side.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, repeat
from typing import TYPE_CHECKING

import torch

from lluda.config.code2wav import SAMPLE_RATE
from lluda.engine.forked import require_own_threads
from lluda.engine.frame_graph import GraphFrames
from lluda.engine.frames import FrameGenerator, SpeechParams
from lluda.engine.generation import Completion, Token
from lluda.engine.prompt_rows import PromptRows
from lluda.engine.speech_graphs import CodesStream, SpeechGraphs
from lluda.engine.talker_prompt import CapturedHiddenStates, TalkerPromptBuilder
from lluda.models.code2wav import Code2Wav
from lluda.models.code_predictor import CodePredictor
from lluda.models.talker import Talker

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RAMP = (1, 1, 2, 4, 8)
"""Frames that code2wav is given at once: few at first, so that the first sound comes early."""


@dataclass(frozen=True, slots=True)
class SpeechChunk:
    """Samples that follow those of the chunk before, mono float32 in [-1, 1]; the ``codes`` of the frames that
    completed them; ``seconds`` since the request."""

    samples: NDArray[np.float32]
    codes: tuple[tuple[int, ...], ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class SpeechCompletion:
    """The end of the speech, of ``frames`` and ``samples`` in all. ``finish_reason``: ``stop`` (the talker ended it),
    ``length`` (max_frames), ``runaway`` (the guard: so long a speech cannot be the text's) or ``silent`` (there was no
    text to speak). Seconds since the request; None for what did not happen."""

    frames: int
    samples: int
    finish_reason: str
    first_text_seconds: float | None
    first_audio_seconds: float | None
    seconds: float


SpeechEvent = Token | Completion | SpeechChunk | SpeechCompletion


@dataclass(frozen=True, slots=True, eq=False)
class Voice:
    """The half of an Omni model that speaks."""

    talker: Talker
    code_predictor: CodePredictor
    code2wav: Code2Wav
    prompts: TalkerPromptBuilder
    kv_dtype: str
    graphs: SpeechGraphs = field(init=False)
    """What its backends have captured of it."""

    def __post_init__(self) -> None:
        graphs = SpeechGraphs(self.talker, self.code_predictor, self.code2wav, self.kv_dtype)
        object.__setattr__(self, "graphs", graphs)

    @property
    def sample_rate(self) -> int:
        """Samples a second."""
        return SAMPLE_RATE

    def samples(self, frames: int) -> int:
        """Samples that so many frames make."""
        return self.code2wav.config.samples(frames) if frames else 0

    def frames(self, seconds: float) -> int:
        """Frames begun in so many seconds."""
        frames = seconds * SAMPLE_RATE / self.code2wav.config.samples_per_frame
        return math.ceil(frames - 1e-6)  # a whole number of frames in seconds is seldom one in float


class _Text:
    """The answer's tokens as the talker asks for them. What the thinker says meanwhile waits in ``events``."""

    def __init__(self, source: Iterator[Token | Completion], end_ids: frozenset[int], started: float) -> None:
        self._source, self._end_ids, self._started = source, end_ids, started
        self.events: list[Token | Completion] = []
        self.first_seconds: float | None = None
        self.ended = False
        self.tokens = 0
        """To speak, so far."""

    def next(self) -> int | None:
        """The next token to speak; None when the thinker has ended. The id that ends a turn is not spoken."""
        while not self.ended:
            event = next(self._source, None)
            if event is None:
                self.ended = True
                break
            self.events.append(event)
            if isinstance(event, Token) and event.id not in self._end_ids:
                self.tokens += 1
                if self.first_seconds is None:
                    self.first_seconds = time.perf_counter() - self._started
                return event.id
        return None

    def take(self) -> list[Token | Completion]:
        """What has waited."""
        waiting, self.events = self.events, []
        return waiting


def join(speeches: Iterable[Callable[[int], Iterator[SpeechEvent]]]) -> Iterator[SpeechEvent]:
    """Speeches one after the other as one: of their SpeechCompletions only one remains, the last event. Each begins
    when the one before has ended, and is given the frames spoken by then; one that its ``max_frames`` ends is the
    last."""
    started, whole = time.perf_counter(), SpeechCompletion(0, 0, "silent", None, None, 0.0)
    for speech in speeches:
        begun = time.perf_counter() - started
        for event in speech(whole.frames):
            match event:
                case SpeechCompletion():
                    whole = _joined(whole, event, begun)
                case SpeechChunk():
                    yield replace(event, seconds=begun + event.seconds)
                case _:
                    yield event
        if whole.finish_reason == "length":
            break
    yield whole


def _joined(before: SpeechCompletion, part: SpeechCompletion, begun: float) -> SpeechCompletion:
    def first(known: float | None, seconds: float | None) -> float | None:
        return known if known is not None or seconds is None else begun + seconds

    return SpeechCompletion(
        frames=before.frames + part.frames,
        samples=before.samples + part.samples,
        finish_reason=_joined_reason(before.finish_reason, part.finish_reason),
        first_text_seconds=first(before.first_text_seconds, part.first_text_seconds),
        first_audio_seconds=first(before.first_audio_seconds, part.first_audio_seconds),
        seconds=begun + part.seconds,
    )


def _joined_reason(before: str, part: str) -> str:
    """A part without text says nothing about the whole; one that ran away says it of the whole."""
    return before if part == "silent" or (before == "runaway" and part == "stop") else part


def speak(
    voice: Voice,
    answer: Iterator[Token | Completion],
    end_ids: frozenset[int],
    params: SpeechParams,
    prompt: PromptRows,
    media: CapturedHiddenStates | None = None,
    speaker: str | None = None,
) -> Iterator[SpeechEvent]:
    """The events of ``answer`` as they come, and its speech between them; last a SpeechCompletion.

    ``end_ids`` end the thinker's turn; ``params`` has no None left; ``prompt`` and ``media`` are what the thinker was
    given. InvalidRequest: an unknown speaker (before anything is computed).
    """
    require_own_threads()
    voice.prompts.speaker_id(speaker)
    started = time.perf_counter()
    text = _Text(answer, end_ids, started)
    first = text.next()
    yield from text.take()
    frames, reason, first_audio = 0, "silent", None
    if first is not None:
        generator = _prefilled(voice, params, prompt, media, first, speaker)
        state, sizes, waiting = voice.graphs.vocoder(), chain(RAMP, repeat(RAMP[-1])), []
        size, tts_end = next(sizes), iter((voice.prompts.tokens.tts_eos,))
        while not (reason := _exceeded(voice, params, frames, text.tokens)):
            codes = generator.next_codes()
            if codes is None:
                reason = "stop"
                break
            frames += 1
            waiting.append(codes)
            if len(waiting) == size:
                chunk = _vocode(state, waiting, started)
                first_audio = first_audio if first_audio is not None else chunk.seconds
                yield chunk
                waiting, size = [], next(sizes)
            token = text.next()
            yield from text.take()
            if token is None:
                token = next(tts_end, voice.prompts.tokens.tts_pad)
            generator.feed(voice.prompts.text_row(token))
        if waiting:
            chunk = _vocode(state, waiting, started)
            first_audio = first_audio if first_audio is not None else chunk.seconds
            yield chunk
    while text.next() is not None:
        yield from text.take()
    yield from text.take()
    yield SpeechCompletion(
        frames, voice.samples(frames), reason, text.first_seconds, first_audio, time.perf_counter() - started
    )


def _exceeded(voice: Voice, params: SpeechParams, frames: int, tokens: int) -> str:
    """Why no frame may follow the first ``frames``, spoken of so many tokens of text; empty if one may."""
    assert params.max_frames is not None, "with_defaults leaves no None here"
    if frames >= params.max_frames:
        return "length"
    if params.guard is not None and frames >= voice.frames(params.guard.seconds(tokens)):
        return "runaway"
    return ""


@torch.inference_mode()
def _prefilled(
    voice: Voice,
    params: SpeechParams,
    prompt: PromptRows,
    media: CapturedHiddenStates | None,
    first: int,
    speaker: str | None,
) -> FrameGenerator | GraphFrames:
    built = voice.prompts.build(prompt, media, first, speaker)
    assert params.max_frames is not None
    rows = len(built.rows) + params.max_frames
    generator = voice.graphs.frames(params, rows) or FrameGenerator(
        voice.talker, voice.code_predictor, params, max_rows=rows, kv_dtype=voice.kv_dtype
    )
    generator.prefill(built.rows, built.positions)
    return generator


@torch.inference_mode()
def _vocode(state: CodesStream, waiting: list[list[int]], started: float) -> SpeechChunk:
    samples = state.push(waiting)
    codes = tuple(tuple(frame) for frame in waiting)
    return SpeechChunk(samples.float().cpu().numpy(), codes, time.perf_counter() - started)
