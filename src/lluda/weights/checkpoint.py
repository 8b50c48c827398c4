"""From a resolved model path to its opened checkpoint and to what it says of itself."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lluda.errors import ModelNotFound
from lluda.json_file import read_json_object
from lluda.weights.entry import Checkpoint
from lluda.weights.gguf_omni import document
from lluda.weights.shards import FolderCheckpoint

if TYPE_CHECKING:
    from lluda.weights.gguf import GGUFCheckpoint

CONFIG_NAME = "config.json"
GENERATION_CONFIG_NAME = "generation_config.json"
PREPROCESSOR_CONFIG_NAME = "preprocessor_config.json"

DOCUMENT_KEYS = {
    GENERATION_CONFIG_NAME: "lluda.generation_config",
    PREPROCESSOR_CONFIG_NAME: "lluda.preprocessor_config",
}
"""Files of a model folder that GGUF has no keys for, kept as JSON so that one file is enough to run."""


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
    """The ``generation_config.json`` of a folder, or the one lluda keeps in a .gguf file; empty if there is none."""
    return _document(path, GENERATION_CONFIG_NAME)


def read_preprocessor_config(path: Path) -> dict[str, Any]:
    """The ``preprocessor_config.json`` of a folder, or the one lluda keeps in a .gguf file; empty if there is none."""
    return _document(path, PREPROCESSOR_CONFIG_NAME)


def read_gguf_metadata(path: Path) -> Mapping[str, Any]:
    """The key-value metadata of a .gguf file. Errors as `GGUFCheckpoint`."""
    with _gguf(path) as checkpoint:
        return checkpoint.metadata


def _document(path: Path, name: str) -> dict[str, Any]:
    if path.is_dir():
        return read_json_object(path / name) if os.path.lexists(path / name) else {}
    with _gguf(path) as checkpoint:
        return document(checkpoint.metadata, DOCUMENT_KEYS[name], path) or {}


def _gguf(path: Path) -> GGUFCheckpoint:
    if path.suffix != ".gguf":
        raise ModelNotFound(f"{path}: not a model; give a model folder or a .gguf file")
    from lluda.weights.gguf import GGUFCheckpoint

    return GGUFCheckpoint(path)
