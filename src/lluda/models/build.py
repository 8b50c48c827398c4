"""From a config to its network, and the tensors of a checkpoint that it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lluda.backends.backend import ComputeBackend
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
from lluda.parameters import ParameterSpec

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
    config: ModelConfig, parameters: Parameters, backend_of: Callable[[str], ComputeBackend]
) -> CausalLM:
    """The network over ``text_parameters``; ``backend_of`` a component (``thinker``, ``experts``, ``audio_encoder``,
    ``vision_encoder``) is what its parameters were placed by."""
    if config.omni is None:
        return CausalLM(config.text, parameters, backend_of("thinker"), experts=backend_of("experts"))
    return Thinker(config.text, config.omni, parameters, backend_of)
