"""A GGUF copy of a safetensors checkpoint, so that llama.cpp runs the very same weights; made once and reused.

BF16, F16 and F32 matrices keep their type and bits; norms and router matrices become F32, as llama.cpp wants them. The
tokenizer is the format's ``none``: the bench feeds ids.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path

from lluda.config.model import ModelConfig
from lluda.convert.gguf_metadata import text_metadata
from lluda.convert.quantize import TypeChoice, write_quantized
from lluda.models.causal_lm import causal_lm_parameters
from lluda.weights.checkpoint import open_checkpoint
from lluda.weights.entry import Checkpoint

Progress = Callable[[int, int], None]


def gguf_copy(
    folder: Path, config: ModelConfig, cache_dir: Path | None = None, progress: Progress | None = None
) -> Path:
    """The GGUF copy of the checkpoint in ``folder``, made in ``cache_dir`` (default: ``lluda-bench`` in the temporary
    folder) unless it is there already, made from the same files. ``progress``: bytes done and in all.

    Raises:
        UnsupportedModel: llama.cpp has no such model.
        LludaError: the copy cannot be written.
    """
    metadata = text_metadata(config, folder.name, "exact") | {"tokenizer.ggml.model": "none"}
    checkpoint = open_checkpoint(folder)
    try:
        path = (
            cache_dir or Path(tempfile.gettempdir()) / "lluda-bench"
        ) / f"{folder.name}-{checkpoint_key(checkpoint)}.gguf"
        if not path.exists():
            specs = causal_lm_parameters(config.text)
            write_quantized(checkpoint, path, specs, TypeChoice("exact"), metadata, progress=progress)
        return path
    finally:
        checkpoint.close()


def checkpoint_key(checkpoint: Checkpoint) -> str:
    """Changes with the files' names, sizes and times and with the layout."""
    files = sorted({entry.file for entry in checkpoint.entries.values()})
    stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.blake2b(f"2 {stats}".encode(), digest_size=8).hexdigest()
