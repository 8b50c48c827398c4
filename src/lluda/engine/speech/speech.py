"""Speech of several answers at once, while their text is still being written: talker, code predictor, code2wav.

Each frame (80 ms) of an answer takes one token of its text, so speech begins with the first token. The frames of all
answers that can go on are made together, and so are the samples that they complete; each answer gets the codes and
samples that it gets alone.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, repeat

import torch

from lluda.config.code2wav import SAMPLE_RATE
from lluda.engine.kv_cache import CacheOptions
from lluda.engine.observer import Reports
from lluda.engine.prompt_rows import PromptRows
from lluda.engine.request import SpeechChunk, SpeechCompletion, SpokenAnswer
from lluda.engine.runner import PREFILL_CHUNK
from lluda.engine.speech import frames as batched
from lluda.engine.speech import graph_frames as captured
from lluda.engine.speech.frames import FrameGenerator
from lluda.engine.speech.graph_frames import GraphFrames
from lluda.engine.speech.speech_graphs import CodesStream, SpeechGraphs, push_all
from lluda.engine.speech.talker_prefixes import TalkerPrefixes
from lluda.engine.speech.talker_prompt import ASSISTANT_ROWS, CapturedHiddenStates, TalkerPromptBuilder
from lluda.errors import LludaError
from lluda.models.code2wav import Code2Wav
from lluda.models.code_predictor import CodePredictor
from lluda.models.talker import Talker

RAMP = (1, 1, 2, 4, 8)
"""Frames that code2wav is given at once: few at first, so that the first sound comes early."""


@dataclass(frozen=True, slots=True, eq=False)
class SpeechStack:
    """The half of an Omni model that speaks. ``deterministic``: each answer is to the bit what it is alone, where that
    takes launches of its own."""

    talker: Talker
    code_predictor: CodePredictor
    code2wav: Code2Wav
    prompts: TalkerPromptBuilder
    kv_dtype: str
    deterministic: bool = False
    prefill_rows: int = PREFILL_CHUNK
    """Rows of users' turns computed at once ahead of an answer."""
    retained_rows: int = 0
    """Of users' turns, kept for later answers."""
    graphs: SpeechGraphs = field(init=False)
    """What its backends have captured of it."""
    prefixes: TalkerPrefixes = field(init=False)

    def __post_init__(self) -> None:
        graphs = SpeechGraphs(self.talker, self.code_predictor, self.code2wav, self.kv_dtype)
        object.__setattr__(self, "graphs", graphs)
        options = CacheOptions(self.retained_rows, dtype=self.kv_dtype)
        exact = self.deterministic or self.talker.backend.name == "reference"
        prefixes = TalkerPrefixes(self.talker, self.prompts, options, step=self.prefill_rows, exact=exact)
        object.__setattr__(self, "prefixes", prefixes)

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


class Speech:
    """The speech of one answer: text in, frames out. ``prompt`` and ``captured`` are what the thinker was given;
    ``index`` is the request's. ``reuse``: the talker's rows of the user's turns are taken from ``stack.prefixes`` and
    kept there.

    InvalidRequest: an unknown speaker."""

    def __init__(
        self,
        stack: SpeechStack,
        spoken: SpokenAnswer,
        prompt: PromptRows,
        captured: CapturedHiddenStates | None,
        index: int = 0,
        *,
        reuse: bool = False,
    ) -> None:
        stack.prompts.speaker_id(spoken.speaker)
        self.stack, self.spoken, self.index = stack, spoken, index
        self.error: Exception | None = None
        self.frames = 0
        self.first_audio_seconds: float | None = None
        self.first_text_seconds: float | None = None
        self._prompt, self._captured, self._reuse = prompt, captured, reuse
        self._before: SpeechCompletion | None = None
        self._text: deque[int] = deque()
        self._text_ended = False
        self._silent_until: int | None = None
        self._consumed = 0
        self._tts_end = [stack.prompts.tokens.tts_eos]
        self._generator: FrameGenerator | GraphFrames | None = None
        self._fed = False
        self._vocoder: CodesStream | None = None
        self._sizes = chain(RAMP, repeat(RAMP[-1]))
        self._size = next(self._sizes)
        self._waiting: list[list[int]] = []
        self._reason = ""
        self._started = time.perf_counter()

    @property
    def ended(self) -> bool:
        """Whether no frame follows."""
        return bool(self._reason)

    @property
    def is_ready(self) -> bool:
        """Whether it can make a frame now."""
        return not self._reason and (self._fed or bool(self._text) or (self._text_ended and self._consumed > 0))

    @property
    def is_cut_off(self) -> bool:
        """Whether its limit of frames ended it."""
        return self._reason == "length"

    @property
    def frames_in_all(self) -> int:
        """Its frames and those of the parts before."""
        return self.frames + (self._before.frames if self._before else 0)

    @property
    def frames_to_go(self) -> int:
        """Frames until code2wav is given some, and their samples are handed out."""
        return self._size - len(self._waiting)

    def following(self) -> Speech:
        """The speech of the next part of a given text, a speech of its own for the talker: its completion tells of
        both, and what this one spoke counts to ``spoken.total_frames``."""
        spoken, total = self.spoken, self.spoken.total_frames
        if total is not None:
            spoken = replace(spoken, params=replace(spoken.params, max_frames=total - self.frames_in_all))
        speech = Speech(self.stack, spoken, self._prompt, self._captured, self.index)
        speech._before, speech._started = self.completion(), self._started
        speech.first_text_seconds, speech.first_audio_seconds = self.first_text_seconds, self.first_audio_seconds
        return speech

    def push_text(self, token: int) -> None:
        """The next token of the text, which is spoken unless it is in a silent span. One of ``spoken.ends_at`` ends the
        text."""
        if self._text_ended:
            return
        if self._silent_until is not None:
            self._silent_until = None if token == self._silent_until else self._silent_until
            return
        if token in self.spoken.ends_at:
            self.end_text()
            return
        self._silent_until = self.spoken.silent_spans.get(token)
        if self._silent_until is not None:
            return
        if self.first_text_seconds is None:
            self.first_text_seconds = time.perf_counter() - self._started
        self._text.append(token)

    def end_text(self) -> None:
        """No token follows."""
        self._text_ended = True
        if not self._consumed and not self._text:
            self._reason = "silent"

    def completion(self, finish_reason: str | None = None) -> SpeechCompletion:
        """The speech as far as it came, with the parts before."""
        own = SpeechCompletion(
            frames=self.frames,
            samples=self.stack.samples(self.frames),
            finish_reason=finish_reason or self._reason,
            first_text_seconds=self.first_text_seconds,
            first_audio_seconds=self.first_audio_seconds,
            seconds=time.perf_counter() - self._started,
            index=self.index,
        )
        return own if self._before is None else joined(self._before, own)

    def close(self) -> None:
        """Give back what was lent to it, and keep what later answers can begin with."""
        if self._reuse and self._generator is not None and self.frames and self.error is None:
            self.stack.prefixes.keep(self._generator.cache, self._prompt)
        self.stack.graphs.give_back(self._generator, self._vocoder)
        self._generator = self._vocoder = None

    def _begin(self) -> None:
        """Run the talker's prompt, which ends with the first token of text. An error is its own."""
        try:
            self._prefill()
        except Exception as error:
            self.error, self._reason = error, "error"

    def _prefill(self) -> None:
        params, prompts, prefixes = self.spoken.params, self.stack.prompts, self.stack.prefixes
        assert params.max_frames is not None, "with_defaults leaves no None here"
        rows = len(prompts.places(self._prompt)) + ASSISTANT_ROWS + params.max_frames
        self._generator = self.stack.graphs.frames(params, rows) or FrameGenerator(
            self.stack.talker, self.stack.code_predictor, params, max_rows=rows, kv_dtype=self.stack.kv_dtype
        )
        self._vocoder = self.stack.graphs.vocoder()
        cache, speaker = self._generator.cache, self.spoken.speaker
        prefixes.begin(cache, self._prompt, self._captured, reuse=self._reuse)
        built = prompts.build(self._prompt, self._captured, self._next_text(), speaker, cache.length)
        self._generator.prefill(built.rows, built.positions)
        self._fed = True

    def _next_text(self) -> int:
        """The token of the next row: of the text, then its end, then padding."""
        if self._text:
            self._consumed += 1
            return self._text.popleft()
        return self._tts_end.pop() if self._tts_end else self.stack.prompts.tokens.tts_pad

    def _exceeded(self) -> str:
        """Why no frame may follow; empty if one may."""
        params = self.spoken.params
        assert params.max_frames is not None, "with_defaults leaves no None here"
        if self.frames >= params.max_frames:
            return "length"
        guard = params.guard
        if guard is not None and self.frames >= self.stack.frames(guard.seconds(self._consumed)):
            return "runaway"
        return ""

    def _take(self, codes: list[int] | LludaError | None) -> None:
        """The codes of a frame, None at the end of the speech."""
        self._fed = False
        if isinstance(codes, LludaError):
            self.error, self._reason = codes, "error"
        elif codes is None:
            self._reason = "stop"
        else:
            self.frames += 1
            self._waiting.append(codes)

    def _due(self) -> list[list[int]]:
        """Frames to make samples of now."""
        if len(self._waiting) == self._size:
            self._size = next(self._sizes)
        elif not (self._reason and self._waiting):
            return []
        due, self._waiting = self._waiting, []
        return due

    def _chunk(self, codes: list[list[int]], samples: torch.Tensor) -> SpeechChunk:
        seconds = time.perf_counter() - self._started
        if self.first_audio_seconds is None:
            self.first_audio_seconds = seconds
        frames = tuple(tuple(frame) for frame in codes)
        return SpeechChunk(samples.float().cpu().numpy(), frames, seconds, self.index)


@torch.inference_mode()
def make_frames(speeches: Sequence[Speech], reports: Reports | None = None) -> dict[Speech, SpeechChunk]:
    """One frame more of each, all of one stack and ready, and the samples that are due; ``reports`` are told how long
    both took."""
    started = time.perf_counter()
    for speech in speeches:
        if speech._generator is None:
            speech._begin()
    begun = [speech for speech in speeches if speech.error is None]
    _feed([speech for speech in begun if not speech._fed])
    going = []
    for speech in begun:
        speech._reason = speech._exceeded()
        if not speech._reason:
            going.append(speech)
    for speech, codes in zip(going, _next_codes(going), strict=True):
        speech._take(codes)
    framed = time.perf_counter()
    chunks = _vocode(speeches)
    if reports is not None:
        reports.step("frame", framed - started, len(speeches))
        if chunks:
            reports.step("vocoder", time.perf_counter() - framed, len(chunks))
    return chunks


def _feed(speeches: Sequence[Speech]) -> None:
    """Give each talker its next row of text, for those whose speech goes on."""
    launched: list[tuple[GraphFrames, int]] = []
    stepped: list[tuple[FrameGenerator, int]] = []
    for speech in speeches:
        generator, token = speech._generator, speech._next_text()
        if isinstance(generator, GraphFrames):
            launched.append((generator, token))
        elif generator is not None:
            stepped.append((generator, token))
        speech._fed = True
    stack = speeches[0].stack if speeches else None
    if stack and launched:
        answers, tokens = zip(*launched, strict=True)
        together = not stack.deterministic
        captured.feed(answers, _text_rows(stack.prompts, tokens, together=together), together=together)
    if stack and stepped:
        generators, tokens = zip(*stepped, strict=True)
        batched.feed(generators, _text_rows(stack.prompts, tokens, together=False))


def _text_rows(prompts: TalkerPromptBuilder, tokens: Sequence[int], *, together: bool) -> torch.Tensor:
    """The rows ``[tokens, hidden]`` that the tokens of as many answers add."""
    return prompts.text_rows(tokens) if together else torch.cat([prompts.text_rows([token]) for token in tokens])


def _next_codes(speeches: Sequence[Speech]) -> list[list[int] | LludaError | None]:
    codes: dict[int, list[int] | LludaError | None] = {}
    stepped: list[tuple[int, FrameGenerator]] = []
    for index, speech in enumerate(speeches):
        generator = speech._generator
        if isinstance(generator, FrameGenerator):
            stepped.append((index, generator))
            continue
        assert generator is not None, "a speech that goes on was begun"
        try:
            codes[index] = generator.next_codes()
        except LludaError as error:
            codes[index] = error
    if stepped:
        found = batched.next_codes([generator for _, generator in stepped])
        codes.update({index: own for (index, _), own in zip(stepped, found, strict=True)})
    return [codes[index] for index in range(len(speeches))]


def _vocode(speeches: Sequence[Speech]) -> dict[Speech, SpeechChunk]:
    """The samples that are due of each."""
    due = {speech: codes for speech in speeches if (codes := speech._due())}
    if not due:
        return {}
    streams = [stream for speech in due if (stream := speech._vocoder)]
    assert len(streams) == len(due), "a speech with frames was begun"
    made = push_all(streams, list(due.values()), together=not speeches[0].stack.deterministic)
    return {speech: speech._chunk(codes, samples) for (speech, codes), samples in zip(due.items(), made, strict=True)}


def joined(before: SpeechCompletion, part: SpeechCompletion) -> SpeechCompletion:
    """Of two parts of a text, the second of which was told when the first began: of both together."""
    return replace(
        part,
        frames=before.frames + part.frames,
        samples=before.samples + part.samples,
        finish_reason=_joined_reason(before.finish_reason, part.finish_reason),
    )


def _joined_reason(before: str, part: str) -> str:
    """A part without text says nothing about the whole; one that ran away says it of the whole."""
    return before if part == "silent" or (before == "runaway" and part == "stop") else part
