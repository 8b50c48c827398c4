"""lluda: Qwen3 and Qwen3-Omni on one person's machine.

``import lluda`` is light: torch is imported when a model is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lluda.errors import (
    CorruptFile,
    InvalidRequest,
    LimitExceeded,
    LludaError,
    MissingDependency,
    ModelNotFound,
    OutOfMemory,
    TemplateError,
    UnsupportedModel,
)

if TYPE_CHECKING:
    from lluda.api.conversation import Conversation
    from lluda.api.model import Model, load
    from lluda.api.speech_model import SpeechModel, load_speech
    from lluda.engine.request import Completion, SpeechChunk, SpeechCompletion, Token
    from lluda.engine.sampling.sampling_params import SamplingParams
    from lluda.engine.speech.speech_guard import SpeechGuard
    from lluda.engine.speech.speech_params import SpeechParams
    from lluda.inputs.chat.chat_options import ChatOptions
    from lluda.outputs.audio_sink import open_audio_sink

__version__ = "0.1.0"

__all__ = [
    "ChatOptions",
    "Completion",
    "Conversation",
    "CorruptFile",
    "InvalidRequest",
    "LimitExceeded",
    "LludaError",
    "MissingDependency",
    "Model",
    "ModelNotFound",
    "OutOfMemory",
    "SamplingParams",
    "SpeechChunk",
    "SpeechCompletion",
    "SpeechGuard",
    "SpeechModel",
    "SpeechParams",
    "TemplateError",
    "Token",
    "UnsupportedModel",
    "load",
    "load_speech",
    "open_audio_sink",
]

_LAZY = {
    "Completion": "lluda.engine.request",
    "ChatOptions": "lluda.inputs.chat.chat_options",
    "Conversation": "lluda.api.conversation",
    "Model": "lluda.api.model",
    "SamplingParams": "lluda.engine.sampling.sampling_params",
    "SpeechChunk": "lluda.engine.request",
    "SpeechCompletion": "lluda.engine.request",
    "SpeechGuard": "lluda.engine.speech.speech_guard",
    "SpeechModel": "lluda.api.speech_model",
    "SpeechParams": "lluda.engine.speech.speech_params",
    "Token": "lluda.engine.request",
    "load": "lluda.api.model",
    "load_speech": "lluda.api.speech_model",
    "open_audio_sink": "lluda.outputs.audio_sink",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'lluda' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
