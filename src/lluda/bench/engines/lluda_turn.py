"""A conversation's turn with ten seconds of sound in and speech out, and its parts as a GPU runs them: captured."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from lluda.backends.device import runtime_of
from lluda.bench.job import Sample
from lluda.config.model import ModelConfig
from lluda.engine.engine import Engine
from lluda.engine.frames import FrameGenerator
from lluda.engine.prompt_rows import PromptRows
from lluda.engine.request import Request, SpeechCompletion, SpokenAnswer
from lluda.engine.runner import Runner
from lluda.engine.sampling_params import SamplingParams
from lluda.engine.speech import SpeechStack
from lluda.engine.speech_params import SpeechParams
from lluda.inputs.text.tokenizer import Tokenizer
from lluda.models.decoder import MultimodalEmbeddings
from lluda.models.thinker import Thinker

TURN_POSITIONS = 512
"""Of the thinker and of the talker: ten seconds of sound are 130 rows, the answer is 24 tokens and 100 frames."""

_MEL_FRAMES = 1000  # ten seconds of log-mel frames
_FRAMES = 100
_WATCHED = 10  # by the profiler
_GREEDY = SamplingParams(temperature=0.0, max_tokens=24, seed=0)


def turn_samples(config: ModelConfig, stack: SpeechStack, runner: Runner, rounds: int) -> Iterator[Sample]:
    """``rounds`` samples of each test after a warm-up:

    * ``speech frame``: talker, code predictor, choice of all codes and the next row, from frame to frame, ms;
    * ``code2wav frame``: codes on the host to samples on the host, one frame of a stream, ms;
    * ``audio encoder 10 s``: log-mel frames to rows, ms;
    * ``first audio``: from log-mel frames of ten seconds of sound to the first samples of the answer, ms;
    * ``turn``: seconds of computing for each second of sound in an answer of up to 100 frames;
    * ``waits in a frame``, where frames are captured: of the host for the device, beside the one for the codes at the
      frame's end.
    """
    turn = _Turn(config, stack, runner)
    for test, measure in (("speech frame", turn.frame_ms), ("code2wav frame", turn.vocoder_ms)):
        measure()
        yield from (Sample(test, measure(), "ms") for _ in range(rounds))
    turn.run()
    for encoder, first, whole in [turn.run() for _ in range(rounds)]:
        yield Sample("audio encoder 10 s", encoder, "ms")
        yield Sample("first audio", first, "ms")
        yield Sample("turn", whole, "s/s")
    if stack.talker.backend.captures:
        # Last: what the profiler leaves behind is in no time above.
        turn.waits()
        yield Sample("waits in a frame", turn.waits(), "waits")


def host_waits(work: Callable[[], object]) -> int:
    """How often ``work`` makes the host wait for the device, by the profiler's record of the driver's calls."""
    return _waits(work) - _waits(lambda: None)


def _waits(work: Callable[[], object]) -> int:
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as record:
        work()
    # A copy between the host's pageable memory and the device waits, too: it is a cudaMemcpyAsync and then a
    # cudaStreamSynchronize where torch does it.
    return sum(call.count for call in record.key_averages() if "Synchronize" in call.key or call.key == "cudaMemcpy")


class _Turn:
    """The turn and its parts."""

    def __init__(self, config: ModelConfig, stack: SpeechStack, runner: Runner) -> None:
        assert isinstance(runner.model, Thinker) and config.omni is not None and config.omni.speech is not None
        self._thinker, self._stack = runner.model, stack
        self._media, self._tokens = config.omni.tokens, config.omni.speech.tokens
        self._engine = Engine(runner, Tokenizer.empty(), lambda: stack, kv_positions=runner.cache_options.max_length)
        self._params = SpeechParams(sampling=SamplingParams(seed=7), max_frames=_FRAMES).with_defaults({})
        self._mel = torch.randn(_MEL_FRAMES, config.omni.audio.num_mel_bins)

    def frame_ms(self) -> float:
        """Milliseconds a frame, from one frame's codes to the next's."""
        with self._speech() as frame:
            return _milliseconds(frame)

    def waits(self) -> float:
        """Of the host in a frame."""
        with self._speech() as frame:
            return host_waits(lambda: [frame() for _ in range(_WATCHED)]) / _WATCHED - 1

    @contextmanager
    def _speech(self) -> Iterator[Callable[[], object]]:
        """A speech that has begun, frame by frame."""
        stack = self._stack
        width, device = stack.talker.config.decoder.hidden_size, stack.talker.backend.device
        text = torch.randn(1, width, device=device)
        frames = stack.graphs.frames(self._params, TURN_POSITIONS) or FrameGenerator(
            stack.talker, stack.code_predictor, self._params, max_rows=TURN_POSITIONS, kv_dtype=stack.kv_dtype
        )
        frames.prefill(torch.randn(24, width, device=device))
        frames.next_codes()

        def frame() -> None:
            frames.feed(text)
            frames.next_codes()

        frame()
        try:
            yield frame
        finally:
            stack.graphs.give_back(self._params, frames, None)

    def vocoder_ms(self) -> float:
        """Milliseconds a frame, one at a time."""
        codes = [[5] * self._stack.code2wav.config.num_quantizers]
        stream = self._stack.graphs.vocoder()
        stream.push(codes)
        stream.push(codes)
        found = _milliseconds(lambda: stream.push(codes))
        self._stack.graphs.give_back(self._params, None, stream)
        return found

    @torch.inference_mode()
    def run(self) -> tuple[float, float, float]:
        """Milliseconds of the encoder and to the first samples, and seconds computed for a second of sound."""
        started = time.perf_counter()
        rows = self._thinker.audio_tower([self._mel])
        runtime_of(rows.device).synchronize()
        encoded = time.perf_counter() - started
        sampling, speech = _GREEDY.with_defaults({}), SpokenAnswer(self._params)
        request = Request(prompt=self._prompt(rows), sampling=sampling, speech=speech, reuse="none")
        done = next(event for event in self._engine.submit(request) if isinstance(event, SpeechCompletion))
        assert done.first_audio_seconds is not None, "a frame was spoken"
        total = time.perf_counter() - started
        sound = done.samples / self._stack.sample_rate
        return encoded * 1e3, (encoded + done.first_audio_seconds) * 1e3, total / sound

    def _prompt(self, rows: torch.Tensor) -> PromptRows:
        """A user's turn that is nothing but the recording, and the header of the answer."""
        media, speech = self._media, self._tokens
        # The third id of a turn's header is a line's end, which any id takes as long to read as.
        before = [speech.im_start, speech.user, speech.user, media.audio_start]
        after = [media.audio_end, speech.im_start, speech.assistant, speech.assistant]
        ids = [*before, *[media.audio_pad] * len(rows), *after]
        places = torch.arange(len(before), len(before) + len(rows))
        return PromptRows(ids, None, MultimodalEmbeddings(places, rows, torch.empty(0, dtype=torch.int64)))


def _milliseconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    for _ in range(_FRAMES):
        work()
    return (time.perf_counter() - started) / _FRAMES * 1e3
