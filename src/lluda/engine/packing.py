"""A model packed ahead of time: from its name to a folder of packed matrices, made by the native library."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import torch

from lluda.backends.native_library import NativeContext
from lluda.backends.packing import pack_matrix
from lluda.backends.weight_memory import WeightMemory
from lluda.engine.loading import LoadOptions
from lluda.weights.checkpoint import CONFIG_NAME, open_checkpoint, read_config
from lluda.weights.hub import find_source
from lluda.weights.loader import Progress
from lluda.weights.packed_folder import DEFAULT_SHARD_BYTES, PackReport, write_packed_folder

_COPIED_SUFFIXES = (".json", ".jinja", ".txt")


def pack_model(
    name_or_path: str | os.PathLike[str],
    out_dir: Path,
    *,
    tokenizer: Path | None = None,
    threads: int | None = None,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    progress: Progress | None = None,
) -> PackReport:
    """Pack a folder, .gguf file or hub model into the new folder ``out_dir``, with its config, and with the tokenizer,
    chat template and generation settings of its folder, or of ``tokenizer`` (a .gguf file's own are not copied).

    Errors as `write_packed_folder`; NativeLibraryError: there is no native library; ModelNotFound: no such model.
    """
    threads = LoadOptions(threads=threads).threads
    native = NativeContext(threads=threads or torch.get_num_threads())
    source = find_source(name_or_path)
    path, is_folder = source.path, not source.is_gguf
    beside = tokenizer if tokenizer is not None else path if is_folder else None
    return write_packed_folder(
        open_checkpoint(source),
        out_dir,
        partial(pack_matrix, memory=WeightMemory(), native=native),
        config=path / CONFIG_NAME if is_folder else read_config(source),
        extra_files=_extra_files(beside) if beside is not None else [],
        shard_bytes=shard_bytes,
        progress=progress,
    )


def _extra_files(folder: Path) -> list[Path]:
    """What a model folder holds beside its weights and config."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.suffix in _COPIED_SUFFIXES
        and path.is_file()
        and path.name != CONFIG_NAME
        and not path.name.endswith(".index.json")
    ]
