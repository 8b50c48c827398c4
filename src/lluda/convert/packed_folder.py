"""A checkpoint's BF16 matrices packed ahead of time into a model folder that is mapped, not read (docs/formats.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from lluda.convert.safetensors_writer import NewTensor, safetensors_header
from lluda.errors import InvalidRequest, LludaError, UnsupportedModel
from lluda.files.atomic_file import atomic_file
from lluda.files.new_folder import new_folder
from lluda.formats.packed_bf16 import PACKED_BF16, decoded_rows
from lluda.formats.plain import BF16
from lluda.formats.stored_tensor import StoredTensor
from lluda.models.components import part_of
from lluda.weights.entry import Checkpoint, TensorEntry
from lluda.weights.safetensors.declared_formats import declaration
from lluda.weights.safetensors.folder import INDEX_NAME, SINGLE_NAME
from lluda.weights.safetensors.header import DTYPE_BITS

if TYPE_CHECKING:
    import torch

DEFAULT_SHARD_BYTES = 5_000_000_000
_LONGEST_LENGTHS = 3 * 20  # digits of a tensor's length and two offsets

Pack = Callable[["torch.Tensor"], "torch.Tensor | None"]
"""A BF16 matrix ``[rows, columns]`` to its packed bytes (uint8), None if it does not compress."""

Progress = Callable[[int, int], None]
"""Called with bytes read and bytes to read in all."""


@dataclass(slots=True)
class PackReport:
    """What packing did: ``packed`` matrices, those ``incompressible`` and stored unchanged, tensors with NaN or
    infinity (``suspicious``), bytes before and after, the ``files`` written, and a ``remark`` on how, if any."""

    packed: list[str] = field(default_factory=list)
    incompressible: list[str] = field(default_factory=list)
    suspicious: list[str] = field(default_factory=list)
    bytes_before: int = 0
    bytes_after: int = 0
    files: list[Path] = field(default_factory=list)
    remark: str = ""


def write_packed_folder(
    checkpoint: Checkpoint,
    out_dir: Path,
    pack: Pack,
    *,
    config: Mapping[str, Any] | Path,
    extra_files: Mapping[str, Path | Mapping[str, Any]] | None = None,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    progress: Progress | None = None,
) -> PackReport:
    """Write ``checkpoint`` into ``out_dir``, which must be absent or empty, with its BF16 matrices packed.

    Matrices are all two-dimensional BF16 tensors but routers; everything else, and what does not compress, is stored as
    it was. Every packed matrix is unpacked again and compared bit for bit before it is written. Two tensors at most are
    in memory at a time.

    Args:
        pack: makes the packed bytes.
        config: written as ``config.json``, last, so that an unfinished folder is not taken for a model; a file is
            copied as it is.
        extra_files: by name, files that are copied and objects that are written as JSON.
        shard_bytes: largest sum of unpacked tensor bytes in one file; a larger tensor has a file of its own.
        progress: called after each tensor.

    Raises:
        InvalidRequest: ``out_dir`` is not empty, or the checkpoint has no BF16 matrix or is packed already.
        UnsupportedModel: a tensor is stored in blocks (GGUF's quantised types).
        CorruptFile: the checkpoint is, or changed meanwhile.
        LludaError: too little disk space, a file that cannot be written, or a matrix that does not unpack to its bits.
    """
    entries = list(checkpoint.entries.values())
    _refuse_unpackable(checkpoint.path, entries)
    if shard_bytes < 1:
        raise InvalidRequest(f"shard_bytes must be at least 1; got {shard_bytes}")
    groups = _groups(entries, shard_bytes)
    extra = {**(extra_files or {}), "config.json": config}
    with new_folder(out_dir) as folder:
        copied = sum(file.stat().st_size for file in extra.values() if isinstance(file, Path))
        needed = sum(_least_bytes(entry) for entry in entries) + copied
        folder.require_space(needed, "remove what the disk can spare")
        writer = _Writer(checkpoint, pack, sum(entry.nbytes for entry in entries), progress)
        weight_map: dict[str, str] = {}
        for number, group in enumerate(groups, 1):
            name = SINGLE_NAME if len(groups) == 1 else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
            writer.write(folder.add(name), group)
            weight_map |= {entry.name: name for entry in group}
        checkpoint.check_unchanged()
        if len(groups) > 1:
            metadata = {"total_size": writer.report.bytes_after}
            folder.write_json(INDEX_NAME, {"metadata": metadata, "weight_map": weight_map})
        for name, content in extra.items():
            if isinstance(content, Path):
                folder.copy(content, name)
            else:
                folder.write_json(name, content)
        writer.report.files = folder.written
    return writer.report


def _refuse_unpackable(path: Path, entries: Sequence[TensorEntry]) -> None:
    kinds = {entry.dtype for entry in entries}
    if PACKED_BF16.name in kinds:
        raise InvalidRequest(f"{path}: is packed already; run it as it is")
    blocks = sorted(kinds - DTYPE_BITS.keys())
    if blocks:
        raise UnsupportedModel(
            f"{path}: holds {', '.join(blocks)} tensors; only BF16 is packed, so give the BF16 model"
        )
    if not any(map(_is_matrix, entries)):
        raise InvalidRequest(f"{path}: has no BF16 matrix to pack (stored: {', '.join(sorted(kinds))})")


def _is_matrix(entry: TensorEntry) -> bool:
    is_router = part_of(entry.name) == "routers"
    return entry.dtype == BF16.name and len(entry.shape) == 2 and 0 not in entry.shape and not is_router


def _least_bytes(entry: TensorEntry) -> int:
    """What a tensor takes at the least: packed without an escape."""
    if not _is_matrix(entry):
        return entry.nbytes
    return min(entry.nbytes, PACKED_BF16.least_bytes(entry.shape))


def _groups(entries: Sequence[TensorEntry], shard_bytes: int) -> list[list[TensorEntry]]:
    """Tensors of each file, filled in order by their bytes before packing: what they take after is not yet known."""
    groups: list[list[TensorEntry]] = []
    remaining = 0
    for entry in entries:
        if not groups or entry.nbytes > remaining:
            groups.append([])
            remaining = shard_bytes
        groups[-1].append(entry)
        remaining -= entry.nbytes
    return groups


class _Writer:
    """Writes the files, one tensor after the other, and keeps the report."""

    def __init__(self, checkpoint: Checkpoint, pack: Pack, total: int, progress: Progress | None) -> None:
        self.report = PackReport()
        self._checkpoint, self._pack = checkpoint, pack
        self._total, self._progress = total, progress

    def write(self, path: Path, entries: Sequence[TensorEntry]) -> None:
        """One file: packed matrices first, so that all of them begin at a multiple of 64 bytes, then the rest. The
        header goes into space reserved for it, when the lengths are known."""
        header_bytes = _header_bytes(entries)
        with atomic_file(path) as file:
            file.seek(header_bytes)
            packed, shapes, rest = [], {}, []
            for entry in entries:
                nbytes = self._write_packed(file, entry) if _is_matrix(entry) else None
                if nbytes is None:
                    rest.append(entry)
                else:
                    packed.append(NewTensor(entry.name, (nbytes,), "U8"))
                    shapes[entry.name] = entry.shape
            for entry in rest:
                file.write(self._checkpoint.stored(entry.name).data.numpy().data)
                self._done(entry, entry.nbytes)
            plain = [NewTensor(entry.name, entry.shape, entry.dtype) for entry in rest]
            header = safetensors_header([*packed, *plain], _metadata(shapes), min_bytes=header_bytes)
            assert len(header) == header_bytes, f"a header of {len(header)} bytes in space for {header_bytes}"
            file.seek(0)
            file.write(header)

    def _write_packed(self, file: BinaryIO, entry: TensorEntry) -> int | None:
        """Bytes written; None if the matrix does not compress."""
        values = self._checkpoint.tensor(entry.name).contiguous()
        stored = self._pack(values)
        if stored is None:
            self.report.incompressible.append(entry.name)
            return None
        self._verify(stored, values, entry)
        file.write(stored.numpy().data)
        self.report.packed.append(entry.name)
        self._done(entry, stored.numel())
        return stored.numel()

    def _verify(self, data: torch.Tensor, values: torch.Tensor, entry: TensorEntry) -> None:
        import torch

        stored, bits = StoredTensor(PACKED_BF16, entry.shape, data), values.view(torch.int16)
        broken = next(PACKED_BF16.violations(stored), None)
        same = broken is None and all(
            torch.equal(rows.view(torch.int16), bits[begin : begin + len(rows)]) for begin, rows in decoded_rows(stored)
        )
        if not same:
            raise LludaError(
                f"{entry.file}: {entry.name} does not unpack to the same bits; nothing was written. The memory may be "
                "faulty; if it happens again, report it"
            )
        if not stored.surely_finite() and not bool(values.isfinite().all()):
            self.report.suspicious.append(f"{entry.name} holds NaN or infinity")

    def _done(self, entry: TensorEntry, nbytes: int) -> None:
        self._checkpoint.release(entry.name)
        self.report.bytes_before += entry.nbytes
        self.report.bytes_after += nbytes
        if self._progress:
            self._progress(self.report.bytes_before, self._total)


def _metadata(shapes: Mapping[str, Sequence[int]]) -> dict[str, str]:
    # "format" is not "pt": other programs would take the bytes for values.
    return {"format": "lluda", **declaration(PACKED_BF16, shapes)}


def _header_bytes(entries: Sequence[TensorEntry]) -> int:
    """Bytes that the header takes at the most, a multiple of 64."""
    tensors = [NewTensor(entry.name, entry.shape, entry.dtype) for entry in entries]
    shapes = {entry.name: entry.shape for entry in entries if _is_matrix(entry)}
    worst = len(safetensors_header(tensors, _metadata(shapes))) + _LONGEST_LENGTHS * len(entries)
    return -(-worst // PACKED_BF16.alignment) * PACKED_BF16.alignment
