"""lluda's speech and its audio encoder: `FrameGenerator`, `Code2Wav`, `AudioEncoder`, and an `Engine` for whole
requests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property

import torch

from lluda.backends.blocks import Parameters
from lluda.bench.engines.lluda_turn import TURN_POSITIONS, turn_samples
from lluda.bench.job import Job, Sample
from lluda.bench.session import EngineInfo
from lluda.bench.source import open_source
from lluda.bench.speech import FRAMES, SpeechTraffic, StreamingSession, prompt_rows
from lluda.bench.weight_traffic import code_predictor_bytes, talker_bytes
from lluda.config.code2wav import SAMPLE_RATE
from lluda.config.omni import OmniConfig, SpeechConfig
from lluda.config.talker import TalkerConfig
from lluda.engine.engine import Engine
from lluda.engine.frames import FrameGenerator
from lluda.engine.prompt_rows import PromptRows
from lluda.engine.request import Request, SpeechCompletion, SpokenAnswer
from lluda.engine.sampling_params import SamplingParams
from lluda.engine.speech import SpeechStack
from lluda.engine.speech_params import SpeechParams
from lluda.engine.talker_prompt import TalkerPromptBuilder
from lluda.inputs.text.tokenizer import Tokenizer
from lluda.models.audio_encoder import AudioEncoder, audio_encoder_parameters
from lluda.models.build import speech_parameters, text_parameters
from lluda.models.code2wav import Code2Wav, Code2WavState
from lluda.models.code_predictor import CodePredictor
from lluda.models.linear import Embedding
from lluda.models.talker import Talker

_WORDS = 12
"""Tokens of the text that a request speaks."""


def open_session(job: Job) -> LludaSpeech:
    """The components that the job's source gives, with its backend and format."""
    return LludaSpeech(job)


class LludaSpeech(StreamingSession):
    """What is timed is what an answer runs."""

    def __init__(self, job: Job) -> None:
        self._job, self._source = job, open_source(job)
        chosen = SpeechParams(sampling=SamplingParams(seed=7), max_frames=FRAMES)
        self._params = chosen.with_defaults(self._source.generation_config)

    @property
    def info(self) -> EngineInfo:
        """See ``SpeechSession``."""
        return EngineInfo(self._source.format, 0.0, self._source.backend("talker").describe())

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
    def _stack(self) -> SpeechStack:
        table = next(spec for spec in text_parameters(self._source.config) if spec.role == "embedding")
        words = self._source.parameters([table]).matrix(table.name)
        return self._speaking_after(Embedding(self._source.backend("thinker"), words))

    def _speaking_after(self, embed: Embedding) -> SpeechStack:
        """What speaks, with the thinker's table of tokens."""
        backend = self._source.backend("talker")
        talker = Talker(_endless(self._speech.talker), self._parameters, backend)
        return SpeechStack(
            talker=talker,
            code_predictor=CodePredictor(self._speech.talker, self._parameters, backend),
            code2wav=Code2Wav(self._speech.code2wav, self._parameters, backend),
            prompts=TalkerPromptBuilder(self._omni, talker, embed),
            kv_dtype=self._source.dtype,
        )

    @cached_property
    def _engine(self) -> Engine:
        return Engine(None, Tokenizer.empty(), lambda: self._stack)

    @cached_property
    def _encoder(self) -> AudioEncoder:
        parameters = self._source.parameters(audio_encoder_parameters(self._omni.audio))
        return AudioEncoder(self._omni.audio, parameters, self._source.backend("audio_encoder"))

    @cached_property
    def _stream(self) -> Code2WavState:
        return self._stack.code2wav.stream()

    @torch.inference_mode()
    def start(self, rows: int) -> None:
        """See ``SpeechSession``."""
        width, stack = self._speech.talker.decoder.hidden_size, self._stack
        prompt = prompt_rows(rows + 1, width).to(stack.talker.backend.precision.residual)
        self._generator = FrameGenerator(
            stack.talker, stack.code_predictor, self._params, max_rows=rows + 2 * FRAMES, kv_dtype=stack.kv_dtype
        )
        self._generator.prefill(prompt[:-1])
        self._text = prompt[-1:]

    def frame(self) -> None:
        """See ``SpeechSession``."""
        self._generator.next_codes()

    def step(self) -> None:
        """See ``SpeechSession``."""
        self._generator.feed(self._text)

    @torch.inference_mode()
    def push(self) -> None:
        """See ``StreamingSession``."""
        self._stack.code2wav.push(self._codes(1), self._stream)

    @torch.inference_mode()
    def vocode(self, frames: int) -> None:
        """See ``SpeechSession``."""
        self._stack.code2wav(self._codes(frames))

    @torch.inference_mode()
    def encode_audio(self, frames: int) -> None:
        """See ``SpeechSession``."""
        self._encoder([torch.zeros(frames, self._omni.audio.num_mel_bins)])

    def speak(self, frames: int) -> tuple[float, float]:
        """See ``StreamingSession``."""
        ids = self._speech.tokens
        # The third id of the turn's header is a line's end, which any id takes as long to read as.
        request = Request(
            prompt=PromptRows([ids.im_start, ids.assistant, ids.assistant]),
            sampling=SamplingParams(),
            text=[(number, "") for number in self._job.prompt(_WORDS)],
            speech=SpokenAnswer(replace(self._params, max_frames=frames)),
        )
        *_, done = self._engine.submit(request)
        assert isinstance(done, SpeechCompletion) and done.first_audio_seconds is not None, "frames were spoken"
        return done.first_audio_seconds, done.seconds / (done.samples / SAMPLE_RATE)

    def turn(self, rounds: int) -> Iterator[Sample]:
        """See ``StreamingSession``."""
        runner, _ = self._source.runner(TURN_POSITIONS)
        stack = self._speaking_after(runner.model.decoder.embed_tokens)
        return turn_samples(self._source.config, stack, runner, rounds)

    def _codes(self, frames: int) -> torch.Tensor:
        return torch.ones(self._speech.code2wav.num_quantizers, frames, dtype=torch.int64)


def _endless(config: TalkerConfig) -> TalkerConfig:
    """With an id for the end of speech that the head does not have, so that all frames asked for are made."""
    return replace(config, codec=replace(config.codec, eos=config.decoder.vocab_size))
