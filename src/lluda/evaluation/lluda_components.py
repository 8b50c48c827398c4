"""lluda's half of a validation: each component loaded by the call that needs it, and freed when its caller returns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lluda.backends.backend import ComputeBackend
from lluda.backends.batch import Segment
from lluda.backends.weight import Parameters
from lluda.config.model import resolve_dtype
from lluda.config.omni import OmniConfig, SpeechConfig
from lluda.config.vision import VisionInputConfig
from lluda.engine.kv_cache import CacheOptions, KVCache
from lluda.engine.loading.load_options import LoadOptions
from lluda.engine.loading.loading import load_network, load_parameters
from lluda.engine.loading.model_files import ModelFiles
from lluda.engine.media import EncodedMedia, MediaReader, PreparedMedia
from lluda.engine.prompt_rows import PromptRows
from lluda.engine.speech.talker_prompt import CapturedHiddenStates
from lluda.evaluation.inputs import ValidationInput
from lluda.evaluation.trace import Observe, Recorder, Step
from lluda.models.audio_encoder import AudioEncoder, audio_encoder_parameters
from lluda.models.causal_lm import CausalLM, causal_lm_parameters
from lluda.models.code2wav import Code2Wav, code2wav_parameters
from lluda.models.thinker import PREFIX, Thinker
from lluda.models.vision_encoder import VisionEncoder, VisionOutput, vision_encoder_parameters
from lluda.parameters import ParameterSpec
from lluda.weights.loader import LoadReport, Progress
from lluda.weights.media_settings import read_media_settings


class LludaDecoder:
    """Implements ``Implementation``: a text model or a thinker. Where a ``prompt`` is given, every sequence begins with
    it; ``captured`` collects what the talker takes of it. A checkpoint without a tokenizer will do."""

    name = "lluda"

    def __init__(
        self,
        network: CausalLM,
        cache: CacheOptions,
        dtype: str,
        prompt: PromptRows | None = None,
        captured: CapturedHiddenStates | None = None,
    ) -> None:
        self.network, self.dtype = network, dtype
        self._cache_options, self._captured = cache, captured
        self._prompt = prompt or PromptRows([])

    def start(self, observe: Observe | None = None) -> Step:
        """See ``Implementation.start``."""
        network, prompt = self.network, self._prompt
        device = network.backend.device
        cache = KVCache(network.config, self._cache_options, device)

        @torch.inference_mode()
        def step(ids: Sequence[int]) -> Tensor:
            start, end = cache.length, cache.length + len(ids)
            if end <= len(prompt):
                assert list(ids) == list(prompt.ids[start:end]), "a sequence begins with its prompt"
                tokens, positions, injected = prompt.chunk(start, end, device)
                watch = _both(observe, self._captured.observer(start) if self._captured else None)
            else:
                tokens, injected, watch = torch.tensor(list(ids), device=device), None, observe
                positions = torch.arange(start, end, device=device) + prompt.position_offset
            logits = network(tokens, positions, [Segment(0, len(ids), cache)], None, watch, injected)
            cache.advance(len(ids))
            return logits

        return step


def load_decoder(
    files: ModelFiles, options: LoadOptions, progress: Progress | None = None
) -> tuple[LludaDecoder, LoadReport]:
    """What answers in text, with nothing of a checkpoint's half that speaks. Errors as ``lluda.load``."""
    network, report = load_network(files, options, progress)
    dtype = resolve_dtype(options.dtype, files.config.dtype)
    return LludaDecoder(network, files.cache_options(options, dtype), dtype), report


class _ThinkerWithoutNetworks(Thinker):
    """What reading media needs of a thinker."""

    def __init__(self, files: ModelFiles, omni: OmniConfig, backend: ComputeBackend) -> None:
        self.config, self.omni, self.backend = files.config.text, omni, backend


class LludaComponents:
    """The components of one checkpoint."""

    def __init__(self, files: ModelFiles, options: LoadOptions) -> None:
        self.files, self.options = files, options
        self.dtype: str = resolve_dtype(options.dtype, files.config.dtype)
        self.cache_options = files.cache_options(options, self.dtype)
        self.backend_of = files.backends(options, self.dtype).of
        self.backend = self.backend_of("thinker")

    @property
    def omni(self) -> OmniConfig:
        """The config of an Omni model, which the checkpoint must be of."""
        assert self.files.config.omni is not None
        return self.files.config.omni

    @property
    def speech(self) -> SpeechConfig:
        """The config of what speaks, which the checkpoint must have."""
        assert self.omni.speech is not None
        return self.omni.speech

    @property
    def vision_input(self) -> VisionInputConfig:
        """How pictures become patches."""
        image = read_media_settings(self.files.source, "image")
        return VisionInputConfig.from_hf(image.raw, image.where, self.omni.vision)

    def load(self, specs: Iterable[ParameterSpec]) -> Parameters:
        """Tensors by name."""
        return load_parameters(self.files, self.options, list(specs))[0]

    def prepare(self, given: ValidationInput) -> list[PreparedMedia]:
        """The media read and transformed. Errors as `MediaReader.prepare`."""
        reader = self._media_reader() if given.media else None
        return [reader.prepare(part, self.cache_options.max_length) for part in given.media] if reader else []

    def prompt(
        self,
        given: ValidationInput,
        media: Sequence[PreparedMedia],
        audio: Sequence[Tensor | None],
        vision: Sequence[VisionOutput | None],
    ) -> PromptRows:
        """The prompt's rows, with what the encoders made of each medium."""
        if not media:
            return PromptRows(list(given.ids))
        made = zip(media, audio, vision, strict=True)
        encoded = [EncodedMedia(medium.key, medium.span, sound, sight) for medium, sound, sight in made]
        reader = self._media_reader()
        return reader.prompt_rows(reader.expand(given.ids, encoded), encoded)

    def _media_reader(self) -> MediaReader:
        return MediaReader(_ThinkerWithoutNetworks(self.files, self.omni, self.backend), self.files.source)

    @torch.inference_mode()
    def audio_encoder(self, media: Sequence[PreparedMedia], observe: Observe | None = None) -> list[Tensor | None]:
        """The audio encoder over the sound of each medium that has any; stages as `audio_encoder.Observer`."""
        config = self.omni.audio
        encoder = AudioEncoder(config, self.load(audio_encoder_parameters(config)), self.backend_of("audio_encoder"))
        sounds = [None if medium.features is None else torch.tensor(medium.features) for medium in media]
        return [None if sound is None else encoder([sound], observe) for sound in sounds]

    @torch.inference_mode()
    def vision_encoder(
        self, media: Sequence[PreparedMedia], observe: Observe | None = None
    ) -> list[VisionOutput | None]:
        """The vision encoder over each picture and video; stages as `vision_encoder.Observer`."""
        config = self.omni.vision
        encoder = VisionEncoder(config, self.load(vision_encoder_parameters(config)), self.backend_of("vision_encoder"))
        patches = [medium.patches for medium in media]
        return [None if each is None else encoder(each.values, [each.grid], observe) for each in patches]

    def decoder(self, prompt: PromptRows, captured: CapturedHiddenStates | None = None) -> LludaDecoder:
        """The text model, or the thinker, on ``prompt``."""
        if self.files.config.omni is None:
            network = load_network(self.files, self.options)[0]
        else:
            config = self.files.config.text
            parameters = self.load(causal_lm_parameters(config, PREFIX))
            network = CausalLM(config, parameters, self.backend, PREFIX, self.backend_of("experts"))
        return LludaDecoder(network, self.cache_options, self.dtype, prompt, captured)

    @torch.inference_mode()
    def code2wav(self, codes: Tensor) -> dict[str, Tensor]:
        """Every stage of int64 ``codes [codebooks, frames]``, and the ``waveform [1, samples]``."""
        config, recorder = self.speech.code2wav, Recorder()
        network = Code2Wav(config, self.load(code2wav_parameters(config)), self.backend_of("code2wav"))
        recorder("waveform", network.push(codes, network.stream(), recorder)[None])
        return recorder.stages


def _both(first: Observe | None, second: Observe | None) -> Observe | None:
    if first is None or second is None:
        return first or second

    def observe(stage: str, rows: Tensor) -> None:
        first(stage, rows)
        second(stage, rows)

    return observe


def position_rows(prompt: PromptRows) -> Tensor:
    """Time, height and width of each row of a prompt, float32 ``[rows, 3]``."""
    if prompt.positions is None:
        return torch.arange(len(prompt), dtype=torch.float32)[:, None].expand(-1, 3).contiguous()
    return prompt.positions.T.float().contiguous()
