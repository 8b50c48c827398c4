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
    from lluda.engine.frames import SpeechParams
    from lluda.engine.generation import Completion, Token
    from lluda.engine.model import Conversation, Model, load
    from lluda.engine.sampling_params import SamplingParams
    from lluda.engine.speech import SpeechChunk, SpeechCompletion
    from lluda.engine.speech_guard import SpeechGuard
    from lluda.engine.speech_model import SpeechModel, load_speech
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
    "Completion": "lluda.engine.generation",
    "ChatOptions": "lluda.inputs.chat.chat_options",
    "Conversation": "lluda.engine.model",
    "Model": "lluda.engine.model",
    "SamplingParams": "lluda.engine.sampling_params",
    "SpeechChunk": "lluda.engine.speech",
    "SpeechCompletion": "lluda.engine.speech",
    "SpeechGuard": "lluda.engine.speech_guard",
    "SpeechModel": "lluda.engine.speech_model",
    "SpeechParams": "lluda.engine.frames",
    "Token": "lluda.engine.generation",
    "load": "lluda.engine.model",
    "load_speech": "lluda.engine.speech_model",
    "open_audio_sink": "lluda.outputs.audio_sink",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'lluda' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
