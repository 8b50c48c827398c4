"""The tokenizer and the chat template of a model, and the memory that reading them leaves."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

from lluda.inputs.chat.chat_template import ChatTemplate
from lluda.inputs.text.tokenizer import Tokenizer
from lluda.weights.checkpoint import (
    Source,
    read_gguf_metadata,
)


def load_tokenizer(source: Source) -> Tokenizer:
    """The tokenizer of a model folder or .gguf file."""
    path = Path(source)
    is_folder = path.is_dir()
    tokenizer = Tokenizer.from_folder(path) if is_folder else Tokenizer.from_gguf(read_gguf_metadata(source), path)
    return_freed_memory()
    return tokenizer


def return_freed_memory() -> None:
    """Give what reading a vocabulary left free back to the system: glibc keeps some 25 MB of it, for good."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def load_chat_template(source: Source) -> ChatTemplate | None:
    """The chat template of a model folder or .gguf file; None if it has none."""
    path = Path(source)
    if path.is_dir():
        return ChatTemplate.from_folder(path)
    return ChatTemplate.from_gguf(read_gguf_metadata(source), path)
