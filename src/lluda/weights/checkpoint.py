"""From a resolved model path to its opened checkpoint and to what it says of itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lluda.errors import ModelNotFound
from lluda.files.gguf_keys import GGUFKeys
from lluda.files.json_file import read_json_object
from lluda.weights.entry import Checkpoint
from lluda.weights.gguf.omni_layout import document
from lluda.weights.hub.model_name import model_name
from lluda.weights.safetensors.folder import FolderCheckpoint

if TYPE_CHECKING:
    from lluda.weights.gguf.checkpoint import GGUFCheckpoint

CONFIG_NAME = "config.json"
GENERATION_CONFIG_NAME = "generation_config.json"
PREPROCESSOR_CONFIG_NAME = "preprocessor_config.json"
PROCESSOR_CONFIG_NAME = "processor_config.json"
VIDEO_PREPROCESSOR_CONFIG_NAME = "video_preprocessor_config.json"

DOCUMENT_KEYS = {
    GENERATION_CONFIG_NAME: "lluda.generation_config",
    PREPROCESSOR_CONFIG_NAME: "lluda.preprocessor_config",
    PROCESSOR_CONFIG_NAME: "lluda.processor_config",
    VIDEO_PREPROCESSOR_CONFIG_NAME: "lluda.video_preprocessor_config",
}
"""Files of a model folder that GGUF has no keys for, kept as JSON so that one file is enough to run."""


class ModelSource:
    """A model folder or .gguf file whose headers are read once: that takes 0.2 s for a vocabulary of
    150,000 tokens. It is accepted wherever a path is. Its files stay open as long as it exists."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_gguf = not path.is_dir()
        self._opened: FolderCheckpoint | GGUFCheckpoint | None = None

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    @property
    def name(self) -> str:
        """The name to show, see `model_name`."""
        return model_name(self.path)

    def opened(self) -> FolderCheckpoint | GGUFCheckpoint:
        """The whole checkpoint, opened at the first call; not to be closed. Errors as `open_checkpoint`."""
        if self._opened is None:
            self._opened = _open_gguf(self.path) if self.is_gguf else FolderCheckpoint(self.path)
        return self._opened

    def release_vocabulary(self) -> None:
        """Release the memory of what only a tokenizer needs; it is read again if it is asked for."""
        if self._opened is not None and not isinstance(self._opened, FolderCheckpoint):
            self._opened.metadata.release()


Source = Path | ModelSource


def is_gguf(path: Path) -> bool:
    """Whether ``path`` is named as a GGUF file, in capitals or not."""
    return path.suffix.lower() == ".gguf"


def open_checkpoint(source: Source, *, prefix: str | tuple[str, ...] = "") -> Checkpoint:
    """The checkpoint in a model folder or .gguf file, with the names that begin with ``prefix`` (or any of
    them), which the caller closes.

    In a folder only the shards that hold such names are opened. Errors as `FolderCheckpoint` or `GGUFCheckpoint`;
    ModelNotFound for a path that is neither.
    """
    path = source.path if isinstance(source, ModelSource) else source
    if path.is_dir() and (prefix or source is path):
        return FolderCheckpoint(path, prefix=prefix)
    checkpoint = source.opened().again() if isinstance(source, ModelSource) else _open_gguf(path)
    if prefix:
        checkpoint.entries = {name: entry for name, entry in checkpoint.entries.items() if name.startswith(prefix)}
    return checkpoint


def read_config(source: Source) -> dict[str, Any]:
    """The model's config as in a ``config.json``: the folder's, or derived from a GGUF file. Values are not checked.

    ModelNotFound: none there. CorruptFile: not strict JSON, or a broken GGUF file. UnsupportedModel: a GGUF
    architecture that has no such config.
    """
    if folder := _folder(source):
        return read_json_object(folder / CONFIG_NAME)
    with _gguf(source) as checkpoint:
        return checkpoint.config


def read_generation_config(source: Source) -> dict[str, Any]:
    """The ``generation_config.json`` of a folder, or the one lluda keeps in a .gguf file; empty if there is none."""
    return read_document(source, GENERATION_CONFIG_NAME)


def read_gguf_metadata(source: Source) -> GGUFKeys:
    """The key-value metadata of a .gguf file. Errors as `GGUFCheckpoint`."""
    with _gguf(source) as checkpoint:
        return checkpoint.metadata


def read_document(source: Source, name: str) -> dict[str, Any]:
    """The JSON file ``name`` of `DOCUMENT_KEYS` of a folder, or the one lluda keeps in a .gguf file; empty if there is
    none. CorruptFile: not a strict JSON object. ModelNotFound: not permitted."""
    if folder := _folder(source):
        return read_json_object(folder / name) if os.path.lexists(folder / name) else {}
    with _gguf(source) as checkpoint:
        return document(checkpoint.metadata, DOCUMENT_KEYS[name], checkpoint.path) or {}


def _folder(source: Source) -> Path | None:
    """The model folder; None for a .gguf file."""
    path = source.path if isinstance(source, ModelSource) else source
    return path if path.is_dir() else None


@contextmanager
def _gguf(source: Source) -> Iterator[GGUFCheckpoint]:
    """The opened .gguf file, closed behind whoever named it by its path."""
    if isinstance(source, ModelSource):
        checkpoint = source.opened()
        assert not isinstance(checkpoint, FolderCheckpoint), f"{source.path} is a folder"
        yield checkpoint
        return
    with _open_gguf(source) as opened:
        yield opened


def _open_gguf(path: Path) -> GGUFCheckpoint:
    if not is_gguf(path):
        raise ModelNotFound(f"{path}: not a model; give a model folder or a .gguf file")
    from lluda.weights.gguf.checkpoint import GGUFCheckpoint

    return GGUFCheckpoint(path)
