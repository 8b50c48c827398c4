"""A GGUF checkpoint: one file or a split set, with the names the models use."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from lluda.errors import CorruptFile, UnsupportedModel
from lluda.formats.stored_tensor import StoredTensor
from lluda.weights.entry import TensorEntry
from lluda.weights.gguf.file import GGUFFile
from lluda.weights.gguf.names import (
    ROPE_FACTORS,
    config_from_metadata,
    hugging_face_entries,
    interleaved_heads,
)
from lluda.weights.gguf.omni_layout import ARCHITECTURE as OMNI
from lluda.weights.gguf.omni_layout import omni_config, omni_entries
from lluda.weights.gguf.split_files import open_parts

if TYPE_CHECKING:
    import torch


class GGUFCheckpoint:
    """A GGUF model under the names the models use (`names`): implements `Checkpoint`.

    ``metadata`` is that of the first part, ``config`` the Hugging Face config that follows from it, ``files`` the
    opened parts. Expert matrices, stored as one block of all experts, are entries of their own. Tensors that have no
    name there keep their own, for the loader to report. ``dtype`` of an entry is how it is stored.
    """

    def __init__(self, path: Path) -> None:
        """Open ``path``: a .gguf file, or the first of a split set (``name-00001-of-00003.gguf``), which opens all.

        CorruptFile: a rule broken, or a set that is incomplete or mixed. ModelNotFound: absent or not permitted.
        UnsupportedModel: an architecture, or a feature of one, that lluda does not have.
        """
        self.path = path
        self.files = open_parts(path)
        try:
            self.metadata = self.files[0].metadata
            stored = _all_entries(self.files)
            self._by_path = {file.path: file for file in self.files}
            self.config: dict[str, Any]
            self.entries: Mapping[str, TensorEntry]
            if self.metadata.text("general.architecture") == OMNI:
                self.config = omni_config(self.metadata, path)
                self.entries = omni_entries(stored, self.metadata, path)
            else:
                self.config = config_from_metadata(self.metadata, path, tensors=stored)
                self._drop_rope_factors(stored)
                self.entries = hugging_face_entries(stored, self.config, path)
        except BaseException:
            self.close()
            raise

    def again(self) -> GGUFCheckpoint:
        """The same files opened once more, for a user who closes them; nothing is parsed again. CorruptFile: one of
        them changed since it was first opened."""
        other = copy(self)
        other.files = tuple(file.again() for file in self.files)
        other._by_path = {file.path: file for file in other.files}
        return other

    def stored(self, name: str) -> StoredTensor:
        """The tensor ``name`` as it lies, see `Checkpoint.stored`. The query and key rows of a llama file lie
        interleaved and are put into the half-split order, which is a copy."""
        entry = self.entries[name]
        return self._by_path[entry.file].stored_at(entry, interleaved_heads(name, self.config))

    def tensor(self, name: str) -> torch.Tensor:
        """The values of ``name``, in the order of `stored`."""
        values = self.stored(name).decode()
        self._by_path[self.entries[name].file].check_unchanged()
        return values

    def in_file_order(self, entry: TensorEntry) -> StoredTensor:
        """An entry, which may have no name here, with its rows in the order of the file, for writing another file of
        its kind."""
        return self._by_path[entry.file].stored_at(entry)

    def release_entry(self, entry: TensorEntry) -> None:
        """As `release`, for an entry that may have no name here."""
        self._by_path[entry.file].release_entry(entry)

    def release(self, name: str) -> None:
        """Release the memory behind the tensor ``name``, as `MappedFile.release`."""
        self.release_entry(self.entries[name])

    def check_unchanged(self) -> None:
        """CorruptFile if a part changed since it was opened; call it after the last use of mapped tensors' bytes."""
        for file in self.files:
            file.check_unchanged()

    def close(self) -> None:
        """Close all parts. Tensors still alive keep their maps. May be called twice."""
        for file in self.files:
            file.close()

    def __enter__(self) -> GGUFCheckpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _drop_rope_factors(self, stored: dict[str, TensorEntry]) -> None:
        # Llama 3.1 and later store divisors of the rotary frequencies; only ones leave the maths alone.
        for name in ROPE_FACTORS:
            entry = stored.pop(name, None)
            if entry and any(factor != 1.0 for factor in self._by_path[entry.file].floats(name)):
                raise UnsupportedModel(
                    f"{entry.file}: {name} scales the rotary frequencies, which lluda does not do; "
                    "supported: none, or factors of one"
                )


def _all_entries(files: tuple[GGUFFile, ...]) -> dict[str, TensorEntry]:
    entries: dict[str, TensorEntry] = {}
    for file in files:
        for name, entry in file.entries.items():
            if name in entries:
                raise CorruptFile(file.path, f"the tensor {name!r} is also in {entries[name].file.name}")
            entries[name] = entry
    return entries
