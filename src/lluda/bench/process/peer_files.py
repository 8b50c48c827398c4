"""What each peer opens to run the same weights, prepared before anything is timed; and what a peer cannot run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import psutil

from lluda.bench.process.gguf_copy import checkpoint_key, gguf_copy
from lluda.config.model import ModelConfig
from lluda.convert.mistralrs_folder import mistralrs_folder
from lluda.errors import UnsupportedModel
from lluda.weights.checkpoint import is_gguf, open_checkpoint

Progress = Callable[[int, int], None]

_CHUNK = 16 << 20


def prepare_files(engine: str, path: Path, config: ModelConfig, cache_dir: Path | None, progress: Progress) -> str:
    """The path that ``engine`` opens for the model in ``path``; copies go to ``cache_dir`` (default: ``lluda-bench`` in
    the temporary folder) and stay there for the next run.

    UnsupportedModel: the peer has no such model; its message is what is reported.
    """
    folder = cache_dir or Path(tempfile.gettempdir()) / "lluda-bench"
    if engine == "llama.cpp" and not is_gguf(path):
        return str(gguf_copy(path, config, folder, progress))
    if engine == "mistralrs":
        return str(mistralrs_folder(path, config, folder / f"{path.name}-{_key(path)}-by-number"))
    if engine == "transformers" and config.model_type != "llama" and not config.text.use_qk_norm:
        raise UnsupportedModel(f"transformers cannot run {config.model_type} without qk-norm")
    return str(path)


def warm_page_cache(path: Path) -> None:
    """Read the weights in ``path`` (a folder or a file) once, so that no engine is the first to fetch them from disk.
    What does not fit the free memory is left there: it would push out what has been read."""
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    if sum(file.stat().st_size for file in files) > psutil.virtual_memory().available:
        return
    buffer = bytearray(_CHUNK)
    for name in files:
        with name.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def _key(path: Path) -> str:
    if is_gguf(path):
        return ""
    checkpoint = open_checkpoint(path)
    key = checkpoint_key(checkpoint)
    checkpoint.close()
    return key
