"""A folder with a model's safetensors: one file, or shards and the index that says which tensor lies in which.

With a prefix, only the shards that hold matching names are looked at; the others may be absent. All that is opened is
checked against the index first, so a checkpoint is wholly consistent or not opened.

A link is followed wherever it leads, if it ends in a regular file: whoever made the folder made it. What the index, a
file that others wrote, names lies in the folder itself.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from copy import copy
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

from lluda.errors import CorruptFile, ModelNotFound, UnsupportedModel
from lluda.files.json_file import read_json_object
from lluda.files.mapped_file import open_regular, unreadable
from lluda.formats.stored_tensor import StoredTensor
from lluda.weights.entry import TensorEntry
from lluda.weights.foreign_formats import PICKLE_SUFFIXES, foreign_files
from lluda.weights.hub.unfinished_downloads import unfinished_downloads
from lluda.weights.safetensors.file import SafetensorsFile
from lluda.weights.saved_names import missing_prefix, released_entries, released_name, require_listable
from lluda.weights.tied_weights import same_values

if TYPE_CHECKING:
    import torch

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"

_MAX_INDEX_BYTES = 16 * 2**20  # the index of Qwen3-Omni's 28,010 tensors has 3 MB
_MAX_INDEX_VALUES = 2**18  # the largest released has 70,000
_LISTED = 5


class FolderCheckpoint:
    """A model folder's safetensors, opened and checked. Implements `Checkpoint`.

    ``entries`` holds the names that begin with ``prefix`` (all for ""), by shard name, then by offset.
    """

    def __init__(self, path: Path, *, prefix: str | tuple[str, ...] = "") -> None:
        """Open the files that hold names beginning with ``prefix`` (or any of them).

        ModelNotFound: no weights in ``path``, or not permitted. UnsupportedModel: only pickle files (.bin, .pt, …),
        which are never opened. CorruptFile: a broken file, a shard that is missing, or an index and shards that
        disagree.
        """
        self.path = path
        self._files: dict[str, SafetensorsFile] = {}
        self._owner: dict[str, str] = {}
        try:
            entries = self._open(prefix)
        except BaseException:
            self.close()
            raise
        self.entries: Mapping[str, TensorEntry] = entries

    def again(self) -> FolderCheckpoint:
        """The same files opened once more, for a user who closes them; no header is read again. CorruptFile: one of
        them changed since it was first opened."""
        other = copy(self)
        other._files = {name: file.again() for name, file in self._files.items()}
        return other

    def stored(self, name: str) -> StoredTensor:
        """As `SafetensorsFile.stored`."""
        return self._files[self._owner[name]].stored(name)

    def tensor(self, name: str) -> torch.Tensor:
        """As `SafetensorsFile.tensor`."""
        return self._files[self._owner[name]].tensor(name)

    def release(self, name: str) -> None:
        """As `SafetensorsFile.release`."""
        self._files[self._owner[name]].release(name)

    def check_unchanged(self) -> None:
        """CorruptFile if any opened file changed since; call it after the last use of mapped tensors' bytes."""
        for file in self._files.values():
            file.check_unchanged()

    def close(self) -> None:
        """Close all files. Tensors still alive keep their maps."""
        for file in self._files.values():
            file.close()

    def __enter__(self) -> FolderCheckpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, prefix: str | tuple[str, ...]) -> dict[str, TensorEntry]:
        index = read_index(self.path)
        if index is None:
            self._files[SINGLE_NAME] = SafetensorsFile(self.path / SINGLE_NAME)
            before = missing_prefix(self._files[SINGLE_NAME].entries)
        else:
            before, listed = missing_prefix(index.weight_map), index.weight_map.items()
            wanted = sorted({shard for name, shard in listed if released_name(before + name).startswith(prefix)})
            _require(self.path, index, wanted)
            for shard in wanted:
                self._files[shard] = SafetensorsFile(self.path / shard)
            _check_index(index, self._files)
        require_listable(entry for file in self._files.values() for entry in file.entries.values())
        for shard, file in self._files.items():
            file.entries = self._released(shard, file, before)
        return {
            name: entry
            for file in self._files.values()
            for name, entry in file.entries.items()
            if name.startswith(prefix)
        }

    def _released(self, shard: str, file: SafetensorsFile, prefix: str) -> dict[str, TensorEntry]:
        """The tensors of ``file`` under their released names, without those that another one holds the values of.
        CorruptFile: two stored tensors for one parameter have different values."""
        unique: dict[str, TensorEntry] = {}
        for entry in released_entries(file.entries.values(), prefix):
            owner = self._files[self._owner.setdefault(entry.name, shard)]
            first = unique.get(entry.name) or (owner.entries[entry.name] if owner is not file else None)
            if first is None:
                unique[entry.name] = entry
            elif not same_values(owner.stored_at(first).decode(), file.stored_at(entry).decode()):
                rule = f"two stored tensors for {entry.name!r:.120} have different values; remove one of them"
                raise CorruptFile(file.path, rule, found=f"{first.file.name} at {first.offset:,} and {entry.offset:,}")
        return unique


class ShardIndex:
    """The checked content of a ``model.safetensors.index.json``: shard file name by tensor name, and total bytes."""

    def __init__(self, path: Path) -> None:
        """Read ``path``. CorruptFile: not strict JSON, or a value of the wrong kind, or a shard name with a folder."""
        self.path = path
        content = read_json_object(path, max_bytes=_MAX_INDEX_BYTES, max_values=_MAX_INDEX_VALUES)
        weight_map = content.get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CorruptFile(path, "weight_map must be an object of shard names by tensor name", found=weight_map)
        for name, shard in weight_map.items():
            if not isinstance(shard, str):
                raise CorruptFile(path, f"weight_map: the shard of {name[:120]!r} must be a string", found=shard)
        for shard in set(weight_map.values()):
            _check_shard_name(shard, path)
        self.weight_map: dict[str, str] = weight_map
        self.total_size = _total_size(content, path)

    @property
    def shards(self) -> list[str]:
        """All shard file names, sorted."""
        return sorted(set(self.weight_map.values()))


def read_index(folder: Path) -> ShardIndex | None:
    """The folder's index, or None if its weights are the one file ``model.safetensors``.

    ModelNotFound, UnsupportedModel: neither is there. CorruptFile: both, for they could hold two different models.
    """
    present = {name: os.path.lexists(folder / name) for name in (SINGLE_NAME, INDEX_NAME)}
    if not any(present.values()):
        _no_weights(folder)
    if not present[INDEX_NAME]:
        return None
    index = ShardIndex(folder / INDEX_NAME)
    if present[SINGLE_NAME] and SINGLE_NAME not in index.shards:
        raise CorruptFile(
            folder / INDEX_NAME, f"the folder also holds {SINGLE_NAME}; remove the one that is not wanted"
        )
    return index


def missing_shards(folder: Path, shards: list[str]) -> list[str]:
    """Those of ``shards`` that are not in ``folder``, or are links to nothing."""
    return [shard for shard in shards if not os.path.exists(folder / shard)]  # noqa: PTH110  (Path.exists may raise)


def _require(folder: Path, index: ShardIndex, wanted: list[str]) -> None:
    missing = missing_shards(folder, wanted)
    for shard in missing:
        if os.path.lexists(folder / shard):
            os.close(open_regular(folder / shard)[0])  # a link to nothing or to itself: says so
    if missing:
        again = unfinished_downloads(folder) or "; download the model again"
        raise CorruptFile(
            folder / missing[0],
            f"this shard is missing, of {len(index.shards)} that {INDEX_NAME} lists{again}",
            found=f"{len(missing)} missing: {_some(missing)}",
        )


def _check_index(index: ShardIndex, files: Mapping[str, SafetensorsFile]) -> None:
    """A tensor may lie in several shards, of which the index lists one: `FolderCheckpoint` compares its values."""
    owner: dict[str, str] = {}
    for shard, file in files.items():
        owner |= {name: shard for name in file.entries if name not in owner or index.weight_map.get(name) == shard}
    for name, shard in index.weight_map.items():
        if shard in files and owner.get(name) != shard:
            rule = f"tensor {name[:120]!r} is not in the shard that {INDEX_NAME} lists it in"
            raise CorruptFile(files[shard].path, rule, expected=shard, found=owner.get(name, "no such tensor"))
    for name, shard in owner.items():
        if name not in index.weight_map:
            raise CorruptFile(files[shard].path, f"tensor {name[:120]!r} is not listed in {INDEX_NAME}")
        if index.weight_map[name] != shard:
            rule = f"tensor {name[:120]!r} lies in a shard other than {INDEX_NAME} says"
            raise CorruptFile(files[shard].path, rule, expected=index.weight_map[name], found=shard)
    if index.total_size is not None and len(files) == len(index.shards):
        entries = [entry for file in files.values() for entry in file.entries.values()]
        total = sum({entry.name: entry.nbytes for entry in entries}.values())
        if index.total_size not in (total, sum(entry.nbytes for entry in entries)):
            rule = "metadata.total_size is not the sum of the tensors' bytes; download or write the model again"
            raise CorruptFile(index.path, rule, expected=total, found=index.total_size)


def _check_shard_name(name: str, path: Path) -> None:
    plain = name.isprintable() and not any(mark in name for mark in "/\\:") and not name.startswith(".")
    if not plain or not name.endswith(".safetensors"):
        raise CorruptFile(path, "a shard must be named by a plain .safetensors file name, without folders", found=name)


def _total_size(content: dict[str, object], path: Path) -> int | None:
    metadata = content.get("metadata", {})
    if not isinstance(metadata, dict):
        raise CorruptFile(path, "metadata must be an object", found=metadata)
    size = metadata.get("total_size")
    if isinstance(size, float) and size.is_integer():  # older writers summed bytes as floats
        size = int(size)
    if size is not None and (type(size) is not int or size < 0):
        raise CorruptFile(path, "metadata.total_size must be an integer of at least 0", found=size)
    return size


def _no_weights(folder: Path) -> NoReturn:
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208
    except OSError as error:
        raise unreadable(folder, error) from error
    if foreign := foreign_files(names):
        raise UnsupportedModel(f"{folder}: {foreign}")
    safetensors = [name for name in names if name.endswith(".safetensors")]
    pickles = [name for name in names if name.lower().endswith(PICKLE_SUFFIXES)]
    ggufs = [name for name in names if name.lower().endswith(".gguf")]
    if safetensors:
        raise ModelNotFound(
            f"{folder}: holds {_some(safetensors)} but neither {SINGLE_NAME} nor {INDEX_NAME}; "
            "download the index, or give a lone file that name"
        )
    if pickles:
        raise UnsupportedModel(pickle_only(str(folder), pickles))
    if ggufs:
        raise ModelNotFound(f"{folder}: holds GGUF files; give one itself: {folder / ggufs[0]}")
    unfinished = unfinished_downloads(folder)
    raise ModelNotFound(f"{folder}: holds no weights; {SINGLE_NAME} or {INDEX_NAME} is needed{unfinished}")


def pickle_only(where: str, files: list[str]) -> str:
    """Why a model of pickle files alone is refused, and what to do."""
    return (
        f"{where}: its weights are only in pickle files ({_some(files)}), which can run code when loaded, so lluda "
        "never opens them; convert them to safetensors (transformers: save_pretrained), or choose a repository that has"
    )


def _some(names: list[str]) -> str:
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")
