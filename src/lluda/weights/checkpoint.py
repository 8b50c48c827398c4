"""From a resolved model path to its opened checkpoint and to what it says of itself."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lluda.errors import ModelNotFound
from lluda.json_file import read_json_object
from lluda.weights.entry import Checkpoint
from lluda.weights.shards import FolderCheckpoint

if TYPE_CHECKING:
    from lluda.weights.gguf import GGUFCheckpoint

CONFIG_NAME = "config.json"
GENERATION_CONFIG_NAME = "generation_config.json"


def open_checkpoint(path: Path, *, prefix: str | tuple[str, ...] = "") -> Checkpoint:
    """The checkpoint in a model folder or .gguf file, with the names that begin with ``prefix`` (or any of them).

    In a folder only the shards that hold such names are opened. Errors as `FolderCheckpoint` or `GGUFCheckpoint`;
    ModelNotFound for a path that is neither.
    """
    if path.is_dir():
        return FolderCheckpoint(path, prefix=prefix)
    checkpoint = _gguf(path)
    if prefix:
        checkpoint.entries = {name: entry for name, entry in checkpoint.entries.items() if name.startswith(prefix)}
    return checkpoint


def read_config(path: Path) -> dict[str, Any]:
    """The model's config as in a ``config.json``: the folder's, or what follows from a GGUF file. Judges no value.

    ModelNotFound: none there. CorruptFile: not strict JSON, or a broken GGUF file. UnsupportedModel: a GGUF
    architecture that has no such config.
    """
    if path.is_dir():
        return read_json_object(path / CONFIG_NAME)
    with _gguf(path) as checkpoint:
        return checkpoint.config


def read_generation_config(path: Path) -> dict[str, Any]:
    """The folder's ``generation_config.json``; empty if it has none, and for a .gguf file, which has no such thing."""
    file = path / GENERATION_CONFIG_NAME
    return read_json_object(file) if path.is_dir() and os.path.lexists(file) else {}


def read_gguf_metadata(path: Path) -> Mapping[str, Any]:
    """The key-value metadata of a .gguf file. Errors as `GGUFCheckpoint`."""
    with _gguf(path) as checkpoint:
        return checkpoint.metadata


def _gguf(path: Path) -> GGUFCheckpoint:
    if path.suffix != ".gguf":
        raise ModelNotFound(f"{path}: not a model; give a model folder or a .gguf file")
    from lluda.weights.gguf import GGUFCheckpoint

    return GGUFCheckpoint(path)
