"""lluda's half of an Omni validation: components loaded one at a time, and let go when their caller returns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lluda.backends.backend import ComputeBackend
from lluda.backends.blocks import Parameters, Segment
from lluda.config.model import resolve_dtype
from lluda.config.omni import SpeechConfig
from lluda.config.vision import VisionInputConfig
from lluda.engine.kv_cache import CacheOptions, KVCache
from lluda.engine.loading import LoadOptions, ModelFiles, load_parameters
from lluda.engine.media import EncodedMedia, MediaReader, PreparedMedia
from lluda.engine.prompt_rows import PromptRows
from lluda.engine.talker_prompt import CapturedHiddenStates
from lluda.evaluation.omni_inputs import OmniInput
from lluda.evaluation.trace import Observe, Recorder, Step
from lluda.models.audio_encoder import AudioEncoder, audio_encoder_parameters
from lluda.models.causal_lm import CausalLM, causal_lm_parameters
from lluda.models.code2wav import Code2Wav, code2wav_parameters
from lluda.models.thinker import PREFIX, Thinker
from lluda.models.vision_encoder import VisionEncoder, VisionOutput, vision_encoder_parameters
from lluda.parameters import ParameterSpec
from lluda.weights.media_settings import read_media_settings


class _Parts(Thinker):
    """A thinker without its networks: what reading media needs of one."""

    def __init__(self, files: ModelFiles, backend: ComputeBackend) -> None:
        assert files.config.omni is not None
        self.config, self.omni, self.backend = files.config.text, files.config.omni, backend


class OmniNetwork:
    """The components of one checkpoint, each loaded by the call that needs it."""

    name = "lluda"

    def __init__(self, files: ModelFiles, options: LoadOptions) -> None:
        assert files.config.omni is not None
        self.files, self.options, self.omni = files, options, files.config.omni
        self.dtype: str = resolve_dtype(options.dtype, files.config.dtype)
        self.cache_options = files.cache_options(options, self.dtype)
        self.backend_of = files.backends(options, self.dtype).of
        self.backend = self.backend_of("thinker")
        self.reader = MediaReader(_Parts(files, self.backend), files.source)
        image = read_media_settings(files.source, "image")
        self.vision_input = VisionInputConfig.from_hf(image.raw, image.where, self.omni.vision)

    @property
    def speech(self) -> SpeechConfig:
        """The config of what speaks, which the checkpoint must have."""
        assert self.omni.speech is not None
        return self.omni.speech

    def load(self, specs: Iterable[ParameterSpec]) -> Parameters:
        """Tensors by name."""
        return load_parameters(self.files, self.options, list(specs))[0]

    def prepare(self, given: OmniInput) -> list[PreparedMedia]:
        """The media read and transformed. Errors as `MediaReader.prepare`."""
        return [self.reader.prepare(part, self.cache_options.max_length) for part in given.media]

    def prompt(
        self,
        given: OmniInput,
        media: Sequence[PreparedMedia],
        heard: Sequence[Tensor | None],
        seen: Sequence[VisionOutput | None],
    ) -> PromptRows:
        """The prompt's rows, with what the encoders made of its media."""
        made = zip(media, heard, seen, strict=True)
        parts = [EncodedMedia(each.key, each.span, sound, sight) for each, sound, sight in made]
        return self.reader.prompt_rows(self.reader.expand(given.ids, parts), parts)

    @torch.inference_mode()
    def hear(self, media: Sequence[PreparedMedia], observe: Observe | None = None) -> list[Tensor | None]:
        """The audio encoder over the sound of each medium that has any; stages as `audio_encoder.Observer`."""
        config = self.omni.audio
        encoder = AudioEncoder(config, self.load(audio_encoder_parameters(config)), self.backend_of("audio_encoder"))
        sounds = [None if medium.features is None else torch.tensor(medium.features) for medium in media]
        return [None if sound is None else encoder([sound], observe) for sound in sounds]

    @torch.inference_mode()
    def see(self, media: Sequence[PreparedMedia], observe: Observe | None = None) -> list[VisionOutput | None]:
        """The vision encoder over each medium that is seen; stages as `vision_encoder.Observer`."""
        config = self.omni.vision
        encoder = VisionEncoder(config, self.load(vision_encoder_parameters(config)), self.backend_of("vision_encoder"))
        patches = [medium.patches for medium in media]
        return [None if each is None else encoder(each.values, [each.grid], observe) for each in patches]

    def thinker(self, prompt: PromptRows, media: CapturedHiddenStates | None = None) -> OmniThinker:
        """The decoder on ``prompt``; ``media`` collects what the talker takes of it."""
        config = self.files.config.text
        parameters, experts = self.load(causal_lm_parameters(config, PREFIX)), self.backend_of("experts")
        network = CausalLM(config, parameters, self.backend, PREFIX, experts)
        return OmniThinker(network, prompt, self.cache_options, self.dtype, media)

    @torch.inference_mode()
    def code2wav(self, codes: Tensor) -> dict[str, Tensor]:
        """Every stage of int64 ``codes [codebooks, frames]``, and the ``waveform [1, samples]``."""
        config, seen = self.speech.code2wav, Recorder()
        network = Code2Wav(config, self.load(code2wav_parameters(config)), self.backend_of("code2wav"))
        seen("waveform", network.push(codes, network.stream(), seen)[None])
        return seen.stages


class OmniThinker:
    """Implements ``Implementation`` for one prompt: the ids that a sequence begins with are that prompt's."""

    name = "lluda"

    def __init__(
        self,
        network: CausalLM,
        prompt: PromptRows,
        cache: CacheOptions,
        dtype: str,
        media: CapturedHiddenStates | None = None,
    ) -> None:
        self.network, self.dtype = network, dtype
        self._prompt, self._cache_options, self._media = prompt, cache, media

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
                placed, positions, injected = prompt.chunk(start, end, device)
                watch = _both(observe, self._media.observer(start) if self._media else None)
            else:
                placed, injected, watch = torch.tensor(list(ids), device=device), None, observe
                positions = torch.arange(start, end, device=device) + prompt.position_offset
            logits = network(placed, positions, [Segment(0, len(ids), cache)], None, watch, injected)
            cache.advance(len(ids))
            return logits

        return step


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
