"""Writing GGUF files (version 3): one file or a split set, tensor after tensor, whole under its name or not there.

The header is written last, into space reserved for it, since a tensor's type may be settled only while it is written.
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from lluda.errors import InvalidRequest, LludaError, UnsupportedModel
from lluda.files.atomic_file import atomic_file, require_absent, write_error
from lluda.weights.checkpoint import is_gguf
from lluda.weights.gguf.header import DEFAULT_ALIGNMENT, STORAGE_TYPES, block_format

if TYPE_CHECKING:
    import numpy as np

MAX_NAME_BYTES = 63
"""ggml keeps names in 64 bytes, the last of them zero."""

_MAX_PARTS = 99999
_TYPE_NUMBERS = {name: number for number, name in STORAGE_TYPES.items()}
_U32, _F32, _BOOL, _STRING, _ARRAY = 4, 6, 7, 8, 9
_NUMPY_TYPES = {"uint8": 0, "int8": 1, "uint16": 2, "int16": 3, "uint32": 4, "int32": 5, "float32": 6}
_NUMPY_TYPES |= {"bool": 7, "uint64": 10, "int64": 11, "float64": 12}

Progress = Callable[[int, int], None]
"""Called with bytes read and bytes to read in all."""


@dataclass(frozen=True, slots=True)
class EncodedKey:
    """A key and its value as they lie in another GGUF file."""

    data: bytes


Metadata = Mapping[str, Any]
"""Values by key: str, bool, int (stored as u32), float (f32), list of str, numpy scalars and one-dimensional arrays (by
their dtype), or an `EncodedKey`."""


@dataclass(frozen=True, slots=True)
class NewTensor:
    """A tensor to write. ``dtype`` is planned; ``write`` puts the bytes at the file's position and returns the type
    they are in. ``source_bytes`` is what is read for it, for the progress."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    source_bytes: int
    write: Callable[[BinaryIO], str]

    @property
    def nbytes(self) -> int:
        """Bytes in the planned type."""
        return block_format(self.dtype).least_bytes(self.shape)


def write_gguf(
    path: Path,
    metadata: Metadata,
    tensors: Sequence[NewTensor],
    *,
    split_bytes: int | None = None,
    check: Callable[[], None] = lambda: None,
    progress: Progress | None = None,
) -> list[Path]:
    """Write ``path``, or, where the tensors take more than ``split_bytes``, the set ``NAME-00001-of-0000N.gguf`` with
    ``metadata`` in its first part. Returns the files written.

    No part of a set appears before all are written and ``check`` has not raised; they appear last first, so that the
    first, which is the one to open, is there when all are. A failure removes what was written.

    Raises:
        InvalidRequest: a name that does not end in .gguf, a file that exists, or a split below one byte.
        UnsupportedModel: a tensor whose name is longer than ggml allows.
        LludaError: too little disk space, or a file that cannot be written.
    """
    if not is_gguf(path):
        raise InvalidRequest(f"{path}: the file to write must be named *.gguf")
    if split_bytes is not None and split_bytes < 1:
        raise InvalidRequest(f"split_bytes must be at least 1, not {split_bytes}")
    for tensor in tensors:
        if len(tensor.name.encode()) > MAX_NAME_BYTES:
            raise UnsupportedModel(f"the tensor name {tensor.name!r} is longer than the {MAX_NAME_BYTES} bytes of GGUF")
    groups = _groups(tensors, split_bytes)
    paths = _paths(path, len(groups))
    for file in paths:
        require_absent(file)
    _check_disk_space(path.parent, path, sum(tensor.nbytes for tensor in tensors))
    report = _Progress(sum(tensor.source_bytes for tensor in tensors), progress)
    appeared: list[Path] = []
    try:
        with ExitStack() as parts:
            for number, file in enumerate(paths):
                parts.push(lambda kind, *_, file=file: None if kind else appeared.append(file))
                keys = _keys(metadata, number, len(groups), len(tensors))
                _write_part(parts.enter_context(atomic_file(file, replace=False)), keys, groups[number], report)
            check()
    except BaseException:
        for file in appeared:
            file.unlink(missing_ok=True)
        raise
    return paths


class _Progress:
    """Adds up what was read."""

    def __init__(self, total: int, show: Progress | None) -> None:
        self._done, self._total, self._show = 0, total, show

    def add(self, count: int) -> None:
        self._done += count
        if self._show:
            self._show(self._done, self._total)


def _groups(tensors: Sequence[NewTensor], split_bytes: int | None) -> list[list[NewTensor]]:
    """Tensors of each part, filled in order."""
    groups: list[list[NewTensor]] = [[]]
    remaining = split_bytes
    for tensor in tensors:
        if remaining is not None and split_bytes is not None:
            if tensor.nbytes > remaining and groups[-1]:
                groups.append([])
                remaining = split_bytes
            remaining -= tensor.nbytes
        groups[-1].append(tensor)
    if len(groups) > _MAX_PARTS:
        raise InvalidRequest(f"the model would have {len(groups)} parts; at most {_MAX_PARTS}: take a larger split")
    return groups


def _paths(path: Path, count: int) -> list[Path]:
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{number:05}-of-{count:05}{path.suffix}") for number in range(1, count + 1)]


def _check_disk_space(folder: Path, path: Path, needed: int) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise write_error(path, error) from error
    if needed > free:
        raise LludaError(
            f"{path}: needs {needed:,} bytes but {free:,} are free on its disk; free disk space, or choose another "
            "folder"
        )


def _keys(metadata: Metadata, number: int, count: int, tensors: int) -> Metadata:
    if count == 1:
        return metadata
    import numpy as np

    split = {
        "split.no": np.uint16(number),
        "split.count": np.uint16(count),
        "split.tensors.count": np.int32(tensors),
    }
    return {**metadata, **split} if number == 0 else split


def _write_part(file: BinaryIO, metadata: Metadata, tensors: Sequence[NewTensor], report: _Progress) -> None:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    keys = [_key(name, value) for name, value in metadata.items()]
    plan = [(tensor, tensor.dtype, 0) for tensor in tensors]
    start = _aligned(len(_head(keys, plan)), alignment)
    file.seek(start)
    settled = []
    for tensor in tensors:
        offset = _aligned(file.tell(), alignment)
        file.seek(offset)
        dtype = tensor.write(file)
        assert file.tell() - offset == block_format(dtype).least_bytes(tensor.shape), f"{tensor.name}: bytes do not fit"
        settled.append((tensor, dtype, offset - start))
        report.add(tensor.source_bytes)
    file.truncate(_aligned(file.tell(), alignment))
    file.seek(0)
    file.write(_head(keys, settled))


def _aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment


def _head(keys: Sequence[bytes], tensors: Sequence[tuple[NewTensor, str, int]]) -> bytes:
    """Everything before the data, of the same length whatever the types and offsets are."""
    infos = [
        _string(tensor.name)
        + struct.pack("<I", len(tensor.shape))
        + b"".join(struct.pack("<Q", size) for size in reversed(tensor.shape))
        + struct.pack("<IQ", _TYPE_NUMBERS[dtype], offset)
        for tensor, dtype, offset in tensors
    ]
    return struct.pack("<4sIQQ", b"GGUF", 3, len(infos), len(keys)) + b"".join(keys) + b"".join(infos)


def _key(name: str, value: Any) -> bytes:
    return value.data if isinstance(value, EncodedKey) else _string(name) + _value(value)


def _value(value: Any) -> bytes:
    match value:
        case str():
            return struct.pack("<I", _STRING) + _string(value)
        case bool():
            return struct.pack("<IB", _BOOL, value)
        case int():
            return struct.pack("<II", _U32, value)
        case float():
            return struct.pack("<If", _F32, value)
        case list():
            texts = b"".join(map(_string, value))
            return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + texts
    return _numpy_value(value)


def _numpy_value(value: np.generic | np.ndarray[Any, Any]) -> bytes:
    kind = _NUMPY_TYPES[value.dtype.name]
    if value.ndim == 0:
        return struct.pack("<I", kind) + value.tobytes()
    return struct.pack("<IIQ", _ARRAY, kind, value.size) + value.tobytes()


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
