"""The Omni thinker: a text model with an audio and a vision encoder (spec sections 3 to 5)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lluda.backends.backend import ComputeBackend
from lluda.backends.group import Group
from lluda.backends.weight import Parameters
from lluda.config.decoder import DecoderConfig
from lluda.config.omni import OmniConfig
from lluda.models.audio_encoder import AudioEncoder, audio_encoder_parameters
from lluda.models.causal_lm import CausalLM, causal_lm_parameters
from lluda.models.components import BY_NAME
from lluda.models.vision_encoder import VisionEncoder, vision_encoder_parameters
from lluda.parameters import ParameterSpec

PREFIX = BY_NAME["thinker"].prefix


class Thinker(CausalLM):
    """The decoder, with the two encoders beside it under the checkpoint's names; each may run on a device of its
    own."""

    def __init__(
        self,
        config: DecoderConfig,
        omni: OmniConfig,
        parameters: Parameters,
        backend_of: Callable[[str], ComputeBackend],
        group: Group | None = None,
    ) -> None:
        super().__init__(config, parameters, backend_of("thinker"), PREFIX, backend_of("experts"), group)
        self.omni = omni
        self.audio_tower = AudioEncoder(omni.audio, parameters, backend_of("audio_encoder"))
        self.visual = VisionEncoder(omni.vision, parameters, backend_of("vision_encoder"))


def thinker_parameters(config: DecoderConfig, omni: OmniConfig) -> Iterator[ParameterSpec]:
    """Every tensor of the thinker."""
    yield from causal_lm_parameters(config, PREFIX)
    yield from audio_encoder_parameters(omni.audio)
    yield from vision_encoder_parameters(omni.vision)
