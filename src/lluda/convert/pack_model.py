"""A model packed ahead of time: from its name to a folder of packed matrices."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lluda.backends.cpu.native_library import NativeContext
from lluda.backends.cpu.packing import pack_matrix
from lluda.backends.cpu.weight_memory import WeightMemory
from lluda.convert.packed_folder import DEFAULT_SHARD_BYTES, Pack, PackReport, write_packed_folder
from lluda.engine.loading.load_options import LoadOptions
from lluda.errors import NativeLibraryError
from lluda.formats.packed_bf16 import PACKED_BF16
from lluda.weights.checkpoint import CONFIG_NAME, ModelSource, open_checkpoint, read_config, read_document
from lluda.weights.hub.sources import find_source
from lluda.weights.loader import Progress
from lluda.weights.model_folder import SETTINGS_FILES, TOKENIZER_FILES, companion_files, tokenizer_files


def pack_model(
    name_or_path: str | os.PathLike[str],
    out_dir: Path,
    *,
    tokenizer: Path | None = None,
    threads: int | None = None,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    progress: Progress | None = None,
) -> PackReport:
    """Pack a folder, .gguf file or hub model into the new folder ``out_dir``, with its config and settings, and with
    its tokenizer and chat template or those of the folder ``tokenizer`` (a .gguf file's own are not copied).

    Without a native library it is done in torch, which takes several times as long, and the report says so.

    Errors as `write_packed_folder`; ModelNotFound: no such model.
    """
    pack, remark = _packer(LoadOptions(threads=threads).threads or torch.get_num_threads())
    source = find_source(name_or_path)
    path, is_folder = source.path, not source.is_gguf
    report = write_packed_folder(
        open_checkpoint(source),
        out_dir,
        pack,
        config=path / CONFIG_NAME if is_folder else read_config(source),
        extra_files=_extra_files(source, tokenizer),
        shard_bytes=shard_bytes,
        progress=progress,
    )
    report.remark = remark
    return report


def _packer(threads: int) -> tuple[Pack, str]:
    """What packs a matrix, and why it is not the native library, if so."""
    try:
        native = NativeContext(threads=threads)
    except NativeLibraryError as error:
        torch.set_num_threads(threads)
        return PACKED_BF16.encode, f"packed in torch: {error}"
    return partial(pack_matrix, memory=WeightMemory(), native=native), ""


def _extra_files(source: ModelSource, tokenizer: Path | None) -> dict[str, Path | Mapping[str, Any]]:
    """The files beside the weights and the config."""
    found: dict[str, Path | Mapping[str, Any]] = {}
    if source.is_gguf:
        found |= {name: document for name in SETTINGS_FILES if (document := read_document(source, name))}
    else:
        found |= companion_files(source.path)
    if tokenizer is None:
        return found
    return {name: file for name, file in found.items() if name not in TOKENIZER_FILES} | tokenizer_files(tokenizer)
