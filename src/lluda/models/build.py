"""From a config to its network, and the tensors of a checkpoint that it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from lluda.backends.backend import ComputeBackend
from lluda.backends.group import Group
from lluda.backends.weight import Parameters
from lluda.config.model import ModelConfig
from lluda.config.omni import SpeechConfig
from lluda.models.causal_lm import CausalLM, causal_lm_parameters
from lluda.models.code2wav import code2wav_parameters
from lluda.models.code_predictor import code_predictor_parameters
from lluda.models.components import COMPONENTS
from lluda.models.decoder import mixture_parameters
from lluda.models.talker import talker_parameters
from lluda.models.thinker import PREFIX as THINKER_PREFIX
from lluda.models.thinker import Thinker, thinker_parameters
from lluda.parameters import ParameterSpec, Share

SPEECH_PREFIXES = tuple(component.prefix for component in COMPONENTS if component.speaks)
"""Prefixes of an Omni checkpoint's speech components, which a text answer does not need."""


def text_prefix(config: ModelConfig) -> str:
    """The prefix of the text decoder and its head: empty, or ``thinker.``"""
    return THINKER_PREFIX if config.omni else ""


def text_parameters(config: ModelConfig) -> list[ParameterSpec]:
    """The tensors of the text half: a text model, or an Omni thinker with its encoders."""
    if config.omni is None:
        return causal_lm_parameters(config.text)
    return list(thinker_parameters(config.text, config.omni))


def decoder_and_head(config: ModelConfig) -> list[ParameterSpec]:
    """The tensors of the text decoder and its head, without encoders: what a tensor-parallel group shares."""
    return causal_lm_parameters(config.text, text_prefix(config))


def shared_specs(config: ModelConfig, specs: Sequence[ParameterSpec], share: Share) -> list[ParameterSpec]:
    """``specs`` as the first rank of a tensor-parallel group holds them: its parts of the decoder and its head, and all
    of the other components. Errors as `ParameterSpec.part`."""
    names = {spec.name for spec in decoder_and_head(config)}
    return [spec.shared(share) if spec.name in names else spec for spec in specs]


def expert_parameters(config: ModelConfig) -> Iterator[ParameterSpec]:
    """The tensors of the mixture blocks of the text half; none of a dense model."""
    return mixture_parameters(config.text, f"{text_prefix(config)}model.")


def speech_parameters(config: SpeechConfig) -> Iterator[ParameterSpec]:
    """The tensors of the speech half: talker, code predictor, code2wav."""
    yield from talker_parameters(config.talker)
    yield from code_predictor_parameters(config.talker)
    yield from code2wav_parameters(config.code2wav)


def all_parameters(config: ModelConfig) -> list[ParameterSpec]:
    """Every tensor of the checkpoint."""
    speech = config.omni.speech if config.omni else None
    return [*text_parameters(config), *(speech_parameters(speech) if speech else ())]


def build_text_model(
    config: ModelConfig,
    parameters: Parameters,
    backend_of: Callable[[str], ComputeBackend],
    group: Group | None = None,
) -> CausalLM:
    """The network over ``text_parameters``; ``backend_of`` a component (``thinker``, ``experts``, ``audio_encoder``,
    ``vision_encoder``) is what its parameters were placed by. Where a ``group`` shares the decoder, its first rank has
    the encoders, and the others are a decoder alone (`decoder_and_head`)."""
    if config.omni is None or (group is not None and group.rank > 0):
        prefix = text_prefix(config)
        return CausalLM(config.text, parameters, backend_of("thinker"), prefix, backend_of("experts"), group)
    return Thinker(config.text, config.omni, parameters, backend_of, group)
