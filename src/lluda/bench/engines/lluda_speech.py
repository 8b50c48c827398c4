"""lluda's voice and ears: `FrameGenerator`, `Code2Wav`, `AudioEncoder`, and `speak` for a whole request."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import torch

from lluda.backends.blocks import Parameters
from lluda.bench.formats import held_format, load_options
from lluda.bench.job import Job
from lluda.bench.session import EngineInfo
from lluda.bench.speech import FRAMES, StreamingSession, VoiceTraffic, prompt_rows
from lluda.bench.weight_traffic import code_predictor_bytes, talker_bytes
from lluda.config.code2wav import SAMPLE_RATE
from lluda.config.model import resolve_dtype
from lluda.config.omni import OmniConfig, SpeechConfig
from lluda.config.talker import TalkerConfig
from lluda.engine.frames import FrameGenerator, SpeechParams
from lluda.engine.generation import Token
from lluda.engine.loading import LoadOptions, ModelFiles, load_parameters
from lluda.engine.prompt_rows import PromptRows
from lluda.engine.sampling_params import SamplingParams
from lluda.engine.speech import SpeechCompletion, Voice, speak
from lluda.engine.talker_prompt import TalkerPromptBuilder
from lluda.models.audio_encoder import AudioEncoder, audio_encoder_parameters
from lluda.models.build import speech_parameters, text_parameters
from lluda.models.code2wav import Code2Wav, Code2WavState
from lluda.models.code_predictor import CodePredictor
from lluda.models.linear import Embedding
from lluda.models.talker import Talker
from lluda.weights.checkpoint import open_checkpoint

_WORDS = 12
"""Tokens of the text that a request speaks."""


def open_session(job: Job) -> LludaSpeech:
    """The components of the job's folder, with its backend and format."""
    return LludaSpeech(job)


class LludaSpeech(StreamingSession):
    """What is timed is what an answer runs."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._files = ModelFiles.find(job.model, allow_unknown_config=job.allow_unknown_config)
        self._options = LoadOptions(
            device=job.device, backend=job.backend, threads=job.threads, **load_options(job.format)
        )
        stored = {entry.dtype for entry in open_checkpoint(self._files.path).entries.values()}
        self._format = held_format(job.format, job.model, stored)
        self._dtype = resolve_dtype(self._options.dtype, self._files.config.dtype)
        chosen = SpeechParams(sampling=SamplingParams(seed=7), max_frames=FRAMES)
        self._params = chosen.with_defaults(self._files.generation_config)

    @property
    def info(self) -> EngineInfo:
        """See ``SpeechSession``."""
        backend = self._files.backends(self._options, self._dtype).of("talker")
        return EngineInfo(self._format, 0.0, backend.describe())

    @property
    def traffic(self) -> VoiceTraffic:
        """See ``SpeechSession``."""
        sizes = {name: value.nbytes for name, value in self._parameters.values.items()}
        config = self._speech.talker
        return VoiceTraffic(code_predictor_bytes(config, sizes), talker_bytes(config, sizes))

    @property
    def _omni(self) -> OmniConfig:
        assert self._files.config.omni is not None, "the run has looked at the config"
        return self._files.config.omni

    @property
    def _speech(self) -> SpeechConfig:
        assert self._omni.speech is not None, "the run has looked at the config"
        return self._omni.speech

    @cached_property
    def _parameters(self) -> Parameters:
        return load_parameters(self._files, self._options, list(speech_parameters(self._speech)))[0]

    @cached_property
    def _voice(self) -> Voice:
        table = next(spec for spec in text_parameters(self._files.config) if spec.role == "embedding")
        words, backend = load_parameters(self._files, self._options, [table])
        talker = Talker(_endless(self._speech.talker), self._parameters, backend)
        return Voice(
            talker=talker,
            code_predictor=CodePredictor(self._speech.talker, self._parameters, backend),
            code2wav=Code2Wav(self._speech.code2wav, self._parameters, backend),
            prompts=TalkerPromptBuilder(self._omni, talker, Embedding(backend, words.matrix(table.name))),
            kv_dtype=self._dtype,
        )

    @cached_property
    def _encoder(self) -> AudioEncoder:
        specs = list(audio_encoder_parameters(self._omni.audio))
        return AudioEncoder(self._omni.audio, *load_parameters(self._files, self._options, specs))

    @cached_property
    def _stream(self) -> Code2WavState:
        return self._voice.code2wav.stream()

    def start(self, rows: int) -> None:
        """See ``SpeechSession``."""
        width, voice = self._speech.talker.decoder.hidden_size, self._voice
        prompt = prompt_rows(rows + 1, width).to(voice.talker.backend.precision.residual)
        self._generator = FrameGenerator(
            voice.talker, voice.code_predictor, self._params, max_rows=rows + 2 * FRAMES, kv_dtype=voice.kv_dtype
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
        self._voice.code2wav.push(self._codes(1), self._stream)

    @torch.inference_mode()
    def vocode(self, frames: int) -> None:
        """See ``SpeechSession``."""
        self._voice.code2wav(self._codes(frames))

    @torch.inference_mode()
    def hear(self, frames: int) -> None:
        """See ``SpeechSession``."""
        self._encoder([torch.zeros(frames, self._omni.audio.num_mel_bins)])

    def speak(self, frames: int) -> tuple[float, float]:
        """See ``StreamingSession``."""
        said = (Token(0, number, "") for number in self._job.prompt(_WORDS))
        ids = self._speech.tokens
        # The third id of the turn's header is a line's end, which any id takes as long to read as.
        header = PromptRows([ids.im_start, ids.assistant, ids.assistant])
        *_, done = speak(self._voice, said, frozenset(), replace(self._params, max_frames=frames), header)
        assert isinstance(done, SpeechCompletion) and done.first_audio_seconds is not None, "frames were spoken"
        return done.first_audio_seconds, done.seconds / (done.samples / SAMPLE_RATE)

    def _codes(self, frames: int) -> torch.Tensor:
        return torch.ones(self._speech.code2wav.num_quantizers, frames, dtype=torch.int64)


def _endless(config: TalkerConfig) -> TalkerConfig:
    """With an id for the end of speech that the head does not have, so that all frames asked for are made."""
    return replace(config, codec=replace(config.codec, eos=config.decoder.vocab_size))
