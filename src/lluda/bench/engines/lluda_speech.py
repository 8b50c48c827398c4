"""lluda's speech and its audio encoder: `FrameGenerator`, `Code2Wav`, `AudioEncoder`, and an `Engine` for whole
requests."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

import torch

from lluda.backends.device import runtime_of
from lluda.backends.weight import Parameters
from lluda.bench.measured.host_waits import host_waits
from lluda.bench.measured.speech import (
    FRAMES,
    MEL_FRAMES,
    PROMPT_ROWS,
    TURN_FRAMES,
    SpeechTraffic,
    StreamingSession,
    prompt_rows,
)
from lluda.bench.prediction.weight_traffic import code_predictor_bytes, talker_bytes
from lluda.bench.process.job import Job
from lluda.bench.session import EngineInfo
from lluda.bench.source import open_source
from lluda.config.code2wav import SAMPLE_RATE
from lluda.config.omni import OmniConfig, SpeechConfig
from lluda.config.talker import TalkerConfig
from lluda.engine.engine import Engine
from lluda.engine.prompt_rows import PromptRows
from lluda.engine.request import Request, SpeechChunk, SpeechCompletion, SpokenAnswer
from lluda.engine.runner import Runner
from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.engine.speech import graph_frames
from lluda.engine.speech.frames import FrameGenerator, feed, next_codes
from lluda.engine.speech.graph_frames import GraphFrames
from lluda.engine.speech.speech import SpeechStack
from lluda.engine.speech.speech_graphs import CodesStream, push_all
from lluda.engine.speech.speech_params import SpeechParams
from lluda.engine.speech.talker_prompt import TalkerPromptBuilder
from lluda.inputs.text.tokenizer import Tokenizer
from lluda.models.audio_encoder import AudioEncoder, audio_encoder_parameters
from lluda.models.build import speech_parameters, text_parameters
from lluda.models.code2wav import Code2Wav
from lluda.models.code_predictor import CodePredictor
from lluda.models.decoder import MultimodalEmbeddings
from lluda.models.linear import Embedding
from lluda.models.talker import Talker
from lluda.models.thinker import Thinker
from lluda.models.vision_encoder import VisionEncoder, vision_encoder_parameters

_WORDS = 12
"""Tokens of the text that a request speaks."""

_TURN_POSITIONS = 512
"""Of the thinker: ten seconds of sound are 130 rows, the answer is 24 tokens."""

_ANSWER = SamplingParams(temperature=0.0, max_tokens=24, seed=0)
_WATCHED = 10  # frames, by the profiler


def open_session(job: Job) -> LludaSpeech:
    """The components that the job's source gives, with its backend and format."""
    return LludaSpeech(job)


class LludaSpeech(StreamingSession):
    """What is timed is what an answer runs."""

    def __init__(self, job: Job) -> None:
        self._job, self._source = job, open_source(job)
        chosen = SpeechParams(sampling=SamplingParams(seed=7), max_frames=FRAMES)
        self._params = chosen.with_defaults(self._source.generation_config)
        self._frames: FrameGenerator | GraphFrames | None = None
        self._patches: torch.Tensor | None = None
        self.splits_frames = not self._source.backend("talker").captures

    @property
    def info(self) -> EngineInfo:
        """See ``SpeechSession``."""
        backend = self._source.backend("talker")
        return EngineInfo(self._source.format, 0.0, backend.describe(), backend.name)

    @property
    def traffic(self) -> SpeechTraffic:
        """See ``SpeechSession``."""
        sizes = {name: value.nbytes for name, value in self._parameters.values.items()}
        config = self._speech.talker
        return SpeechTraffic(code_predictor_bytes(config, sizes), talker_bytes(config, sizes))

    @property
    def _omni(self) -> OmniConfig:
        assert self._source.config.omni is not None, "the run has looked at the config"
        return self._source.config.omni

    @property
    def _speech(self) -> SpeechConfig:
        assert self._omni.speech is not None, "the run has looked at the config"
        return self._omni.speech

    @cached_property
    def _parameters(self) -> Parameters:
        return self._source.parameters(speech_parameters(self._speech))

    @cached_property
    def _runner(self) -> Runner | None:
        """Of the thinker, where a turn is measured."""
        return self._source.runner(_TURN_POSITIONS)[0] if "turn" in self._job.plan.tests else None

    @cached_property
    def _embed(self) -> Embedding:
        """The thinker's table of tokens."""
        if self._runner is not None:
            return self._runner.table_of_tokens
        table = next(spec for spec in text_parameters(self._source.config) if spec.role == "embedding")
        words = self._source.parameters([table]).matrix(table.name)
        return Embedding(self._source.backend("thinker"), words)

    @cached_property
    def _stack(self) -> SpeechStack:
        backend, config = self._source.backend("talker"), self._speech.talker
        # Captured frames suppress ids of the head alone: there the talker may end its speech.
        talker = Talker(_endless(config) if self.splits_frames else config, self._parameters, backend)
        return SpeechStack(
            talker=talker,
            code_predictor=CodePredictor(self._speech.talker, self._parameters, backend),
            code2wav=Code2Wav(self._speech.code2wav, self._parameters, backend),
            prompts=TalkerPromptBuilder(self._omni, talker, self._embed),
            kv_dtype=self._source.dtype,
        )

    @cached_property
    def _engine(self) -> Engine:
        positions = _TURN_POSITIONS if self._runner else 0
        return Engine(self._runner, Tokenizer.empty(), lambda: self._stack, kv_positions=positions)

    @cached_property
    def _encoder(self) -> AudioEncoder:
        if self._runner is not None:
            assert isinstance(self._runner.model, Thinker)
            return self._runner.model.audio_tower
        parameters = self._source.parameters(audio_encoder_parameters(self._omni.audio))
        return AudioEncoder(self._omni.audio, parameters, self._source.backend("audio_encoder"))

    @cached_property
    def _vision(self) -> VisionEncoder:
        if self._runner is not None:
            assert isinstance(self._runner.model, Thinker)
            return self._runner.model.visual
        parameters = self._source.parameters(vision_encoder_parameters(self._omni.vision))
        return VisionEncoder(self._omni.vision, parameters, self._source.backend("vision_encoder"))

    @cached_property
    def _stream(self) -> CodesStream:
        return self._stack.graphs.vocoder()

    @torch.inference_mode()
    def start(self, rows: int) -> None:
        """See ``SpeechSession``."""
        width, stack, longest = self._speech.talker.decoder.hidden_size, self._stack, rows + 2 * FRAMES
        backend = stack.talker.backend
        prompt = prompt_rows(rows + 1, width).to(backend.device, backend.precision.residual)
        stack.graphs.give_back(self._frames, None)
        self._frames = stack.graphs.frames(self._params, longest) or FrameGenerator(
            stack.talker, stack.code_predictor, self._params, max_rows=longest, kv_dtype=stack.kv_dtype
        )
        self._frames.prefill(prompt[:-1])
        self._text = prompt[-1:]

    @torch.inference_mode()
    def start_together(self, answers: int) -> Callable[[], None]:
        """See ``StreamingSession``."""
        stack, longest = self._stack, PROMPT_ROWS + 2 * FRAMES
        # Each says something else, so that each chooses its own experts.
        sampling = [replace(self._params.sampling, seed=number) for number in range(answers)]
        params = [replace(self._params, sampling=own) for own in sampling]
        captured = [frames for own in params if (frames := stack.graphs.frames(own, longest))]
        made = [
            FrameGenerator(stack.talker, stack.code_predictor, own, max_rows=longest, kv_dtype=stack.kv_dtype)
            for own in params[len(captured) :]
        ]
        width, backend = self._speech.talker.decoder.hidden_size, stack.talker.backend
        prompt = prompt_rows(PROMPT_ROWS + answers, width).to(backend.device, backend.precision.residual)
        every: list[FrameGenerator | GraphFrames] = [*captured, *made]
        for number, one in enumerate(every):
            one.prefill(prompt[number : number + PROMPT_ROWS].clone())
        text = prompt[:answers]

        def frame() -> None:
            if captured:
                for one in captured:
                    one.next_codes()
                graph_frames.feed(captured, text, together=True)
            else:
                next_codes(made)
                feed(made, text)

        return frame

    def frame(self) -> None:
        """See ``SpeechSession``."""
        assert self._frames is not None, "started"
        self._frames.next_codes()

    def step(self) -> None:
        """See ``SpeechSession``."""
        assert self._frames is not None, "started"
        self._frames.feed(self._text)

    @torch.inference_mode()
    def push(self) -> None:
        """See ``StreamingSession``."""
        self._stream.push([[1] * self._speech.code2wav.num_quantizers])

    @torch.inference_mode()
    def start_streams(self, streams: int) -> Callable[[], None]:
        """See ``StreamingSession``."""
        codes = [[[1] * self._speech.code2wav.num_quantizers]] * streams
        made = [self._stack.graphs.vocoder() for _ in codes]

        @torch.inference_mode()
        def frame() -> None:
            push_all(made, codes, together=True)

        return frame

    @torch.inference_mode()
    def vocode(self, frames: int) -> None:
        """See ``SpeechSession``."""
        codes = torch.ones(self._speech.code2wav.num_quantizers, frames, dtype=torch.int64)
        self._stack.code2wav(codes).cpu()

    @torch.inference_mode()
    def encode_audio(self, frames: int) -> None:
        """See ``SpeechSession``."""
        self._encode(frames)

    @torch.inference_mode()
    def encode_picture(self, side: int) -> None:
        """See ``SpeechSession``."""
        config = self._omni.vision
        patches = side // config.patch_size
        if self._patches is None or len(self._patches) != patches * patches:
            self._patches = torch.zeros(patches * patches, config.patch_values)
        rows = self._vision(self._patches, [(1, patches, patches)]).embeddings
        runtime_of(rows.device).synchronize()

    def speak(self, frames: int) -> tuple[float, float]:
        """See ``StreamingSession``."""
        return self._spoken(self._reading(frames, 0))

    def speak_together(self, answers: int, frames: int) -> tuple[float, float]:
        """See ``StreamingSession``."""
        begun = time.perf_counter()
        first: dict[int, float] = {}
        heard: dict[int, float] = {}
        margin = math.inf
        for event in self._engine.submit(*(self._reading(frames, number) for number in range(answers))):
            if isinstance(event, SpeechChunk):
                now, index = time.perf_counter() - begun, event.index
                if index in first:
                    margin = min(margin, first[index] + heard[index] - now)
                first.setdefault(index, now)
                heard[index] = heard.get(index, 0.0) + len(event.samples) / SAMPLE_RATE
        return max(first.values()), margin

    @torch.inference_mode()
    def turn(self) -> tuple[float, float]:
        """See ``StreamingSession``."""
        begun = time.perf_counter()
        rows = self._encode(MEL_FRAMES)
        encoded = time.perf_counter() - begun
        speech = SpokenAnswer(replace(self._params, max_frames=TURN_FRAMES))
        sampling = _ANSWER.with_defaults({})
        request = Request(prompt=self._turn_prompt(rows), sampling=sampling, speech=speech, reuse="none")
        return self._spoken(request, encoded)

    def waits(self) -> float | None:
        """See ``StreamingSession``."""
        if self.splits_frames:
            return None

        def frames() -> None:
            for _ in range(_WATCHED):
                self.step()
                self.frame()

        self.start(_WATCHED)
        self.frame()
        frames()
        return host_waits(frames) / _WATCHED - 1

    def _encode(self, frames: int) -> torch.Tensor:
        """The encoder's rows, when they are there."""
        rows = self._encoder([torch.zeros(frames, self._omni.audio.num_mel_bins)])
        runtime_of(rows.device).synchronize()
        return rows

    def _spoken(self, request: Request, seconds_before: float = 0.0) -> tuple[float, float]:
        """Seconds to the first samples, and seconds of work for each of sound."""
        begun = time.perf_counter()
        done = next(event for event in self._engine.submit(request) if isinstance(event, SpeechCompletion))
        assert done.first_audio_seconds is not None, "frames were spoken"
        spent = seconds_before + time.perf_counter() - begun
        return seconds_before + done.first_audio_seconds, spent / (done.samples / SAMPLE_RATE)

    def _reading(self, frames: int, index: int) -> Request:
        """A request to speak so many frames of a text."""
        ids = self._speech.tokens
        # The third id of the turn's header is a line's end, which any id takes as long to read as.
        return Request(
            prompt=PromptRows([ids.im_start, ids.assistant, ids.assistant]),
            sampling=SamplingParams(),
            text=[[(number, "") for number in self._job.prompt(_WORDS, index)]],
            speech=SpokenAnswer(replace(self._params, max_frames=frames)),
            index=index,
        )

    def _turn_prompt(self, rows: torch.Tensor) -> PromptRows:
        """A user's turn that is nothing but the recording, and the header of the answer."""
        media, speech = self._omni.tokens, self._speech.tokens
        # The third id of a turn's header is a line's end, which any id takes as long to read as.
        before = [speech.im_start, speech.user, speech.user, media.audio_start]
        after = [media.audio_end, speech.im_start, speech.assistant, speech.assistant]
        ids = [*before, *[media.audio_pad] * len(rows), *after]
        places = torch.arange(len(before), len(before) + len(rows))
        return PromptRows(ids, None, MultimodalEmbeddings(places, rows, torch.empty(0, dtype=torch.int64)))


def _endless(config: TalkerConfig) -> TalkerConfig:
    """With an id for the end of speech that the head does not have, so that all frames asked for are made."""
    return replace(config, codec=replace(config.codec, eos=config.decoder.vocab_size))
