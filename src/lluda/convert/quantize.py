"""From a checkpoint to a GGUF file: which tensor gets which type, under which name, encoded as it is read.

One tensor of the source at a time is in memory, and of its values a piece; the tensors of all experts of a layer are
written expert by expert.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from lluda.convert.gguf_writer import Metadata, NewTensor, Progress, write_gguf
from lluda.errors import CorruptFile, InvalidRequest, UnsupportedModel
from lluda.formats.plain import BF16, F16, F32
from lluda.formats.q8_0 import Q8_0
from lluda.formats.registry import FORMATS
from lluda.formats.stored_tensor import StoredTensor
from lluda.models.components import component_of, part_of
from lluda.parameters import ParameterSpec
from lluda.weights.entry import Checkpoint, TensorEntry
from lluda.weights.gguf.checkpoint import GGUFCheckpoint
from lluda.weights.gguf.header import block_format
from lluda.weights.gguf.names import gguf_name
from lluda.weights.gguf.omni_layout import omni_name, stored_shape
from lluda.weights.loader import tied_sources

if TYPE_CHECKING:
    import torch

TYPES = {"q8_0": Q8_0.name, "bf16": BF16.name, "exact": ""}
"""What a matrix can become. ``exact`` is the plain type that holds its values (BF16, F16 or F32), for comparisons."""

_PIECE = 1 << 18  # values encoded at once: what is made of them stays in the caches
_MATRIX_ROLES = ("matrix", "embedding")
_PLAIN = (F32.name, F16.name, BF16.name)


@dataclass(frozen=True, slots=True)
class TypeChoice:
    """The type of every matrix: ``default``, or that of its component. ``components`` has names as `component_names`
    gives them; of two that fit, the longer holds."""

    default: str
    components: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (self.default, *self.components.values()):
            if name not in TYPES:
                raise InvalidRequest(f"type {name!r:.40} is not one of q8_0, bf16")

    def of(self, name: str) -> str:
        """The type of the matrix ``name``."""
        component, part = component_names(name)
        return self.components.get(part, self.components.get(component, self.default))

    def require_components(self, specs: Sequence[ParameterSpec]) -> None:
        """InvalidRequest if a component is named that none of ``specs`` belongs to."""
        known = sorted({one for spec in specs if spec.role in _MATRIX_ROLES for one in component_names(spec.name)})
        for name in self.components:
            if name not in known:
                raise InvalidRequest(f"component {name!r:.60} is not in this model; it has {', '.join(known)}")


def component_names(name: str) -> tuple[str, str]:
    """The component of a tensor and its part of it: ``thinker`` and ``thinker/experts``, ``text`` and
    ``text/attention``, …"""
    component, part = component_of(name).name, part_of(name)
    return component, f"{component}/{part.replace('routed ', '').replace(' ', '_')}"


@dataclass(slots=True)
class QuantizeReport:
    """What was written: ``files``, tensors by type, bytes before and after, and by name why a matrix did not get the
    type it was to have."""

    files: list[Path] = field(default_factory=list)
    types: dict[str, int] = field(default_factory=dict)
    not_quantized: dict[str, str] = field(default_factory=dict)
    bytes_before: int = 0
    bytes_after: int = 0


def write_quantized(
    checkpoint: Checkpoint,
    path: Path,
    specs: Sequence[ParameterSpec],
    choice: TypeChoice,
    metadata: Metadata,
    *,
    omni: bool = False,
    split_bytes: int | None = None,
    progress: Progress | None = None,
) -> QuantizeReport:
    """Write ``checkpoint`` as the GGUF file ``path`` (or a split set, see `write_gguf`).

    Matrices and embeddings of ``specs`` get the type of ``choice``; routers and all one-dimensional tensors become F32;
    kernels of convolutions stay as they are. A matrix that Q8_0 cannot hold (rows that are no multiple of 32, or values
    so large that a scale overflows float16) stays BF16 or F16 if it is, else becomes F32, and is reported. What is
    stored in the type it is to have is copied byte for byte. A source in GGUF keeps its names; tensors that lluda does
    not read are copied.

    Args:
        metadata: all keys of the file.
        omni: whether names are those of the Omni layout (`weights.gguf.omni_layout`).

    Raises:
        InvalidRequest: an unknown component, or ``path`` refused.
        CorruptFile: a tensor missing, of the wrong shape or with NaN or infinity where it is quantised, or the source
            changed meanwhile.
        UnsupportedModel: a tensor that GGUF has no name for.
        LludaError: too little disk space, or a file that cannot be written.
    """
    choice.require_components(specs)
    report = QuantizeReport()
    encoder = _Encoder(checkpoint, report)
    stored = _requantized if isinstance(checkpoint, GGUFCheckpoint) else _translated
    planned = [encoder.planned(one, choice) for one in stored(checkpoint, specs, omni)]
    report.bytes_before = sum(tensor.source_bytes for tensor in planned)
    report.files = write_gguf(
        path, metadata, planned, split_bytes=split_bytes, check=checkpoint.check_unchanged, progress=progress
    )
    return report


@dataclass(frozen=True, slots=True)
class _Target:
    """A tensor of the file: its name, the source's entries it is made of (``stacked``: one per expert) and what it
    is for."""

    name: str
    entries: tuple[TensorEntry, ...]
    role: str
    stacked: bool

    @property
    def shape(self) -> tuple[int, ...]:
        shape = stored_shape(self.entries[0].shape)
        return (len(self.entries), *shape) if self.stacked else shape


def _translated(checkpoint: Checkpoint, specs: Sequence[ParameterSpec], omni: bool) -> Iterator[_Target]:
    """A model folder's tensors under GGUF's names."""
    stacks: dict[str, list[TensorEntry]] = {}
    roles: dict[str, tuple[str, bool]] = {}
    stored_as = tied_sources(checkpoint.entries, specs)
    for spec in specs:
        entry = checkpoint.entries.get(stored_as.get(spec.name, spec.name))
        if spec.tied_to:
            continue
        if entry is None or entry.shape != spec.shape:
            found = "nothing" if entry is None else list(entry.shape)
            raise CorruptFile(checkpoint.path, f"tensor {spec.name}", expected=list(spec.shape), found=found)
        name, expert = omni_name(spec.name) if omni else gguf_name(spec.name)
        stack = stacks.setdefault(name, [])
        assert expert in (None, len(stack)), f"{spec.name} is out of order"
        stack.append(entry)
        roles[name] = spec.role, expert is not None
    for name, entries in stacks.items():
        yield _Target(name, tuple(entries), *roles[name])


def _requantized(checkpoint: Checkpoint, specs: Sequence[ParameterSpec], _omni: bool) -> Iterator[_Target]:
    """A GGUF file's tensors as they are; an expert's matrix is a slice of the stored one."""
    assert isinstance(checkpoint, GGUFCheckpoint)
    roles = {spec.name: spec.role for spec in specs}
    slices: dict[tuple[Path, int], TensorEntry] = {
        (entry.file, entry.offset): entry for entry in checkpoint.entries.values()
    }
    for file in checkpoint.files:
        for name, entry in file.entries.items():
            first = slices.get((entry.file, entry.offset), entry)
            if len(first.shape) == len(entry.shape) or len(entry.shape) <= 2:
                yield _Target(name, (first,), roles.get(first.name, "unknown"), stacked=False)
                continue
            step = first.nbytes
            parts = tuple(slices[entry.file, entry.offset + index * step] for index in range(entry.shape[0]))
            yield _Target(name, parts, roles.get(first.name, "unknown"), stacked=True)


class _Encoder:
    """Reads the source's tensors and writes their bytes in the type planned for them."""

    def __init__(self, checkpoint: Checkpoint, report: QuantizeReport) -> None:
        self._checkpoint = checkpoint
        self._report = report

    def planned(self, target: _Target, choice: TypeChoice) -> NewTensor:
        """The tensor of the file, with the type it is to get."""
        dtype, reason = _planned_type(target, choice)
        if reason:
            self._report.not_quantized[target.name] = reason
        nbytes = sum(entry.nbytes for entry in target.entries)
        return NewTensor(target.name, target.shape, dtype, nbytes, lambda file: self._write(file, target, dtype))

    def _write(self, file: BinaryIO, target: _Target, dtype: str) -> str:
        start = file.tell()
        if not self._write_parts(file, target, dtype):
            self._report.not_quantized[target.name] = "its values are too large for the scales of Q8_0"
            file.seek(start)
            dtype = _exact_type(target.entries[0])
            self._write_parts(file, target, dtype)
        self._report.types[dtype] = self._report.types.get(dtype, 0) + 1
        self._report.bytes_after += file.tell() - start
        return dtype

    def _write_parts(self, file: BinaryIO, target: _Target, dtype: str) -> bool:
        """Whether ``dtype`` could hold it."""
        for entry in target.entries:
            stored = self._stored(entry)
            pieces = iter([stored.data]) if dtype == entry.dtype else _encoded(stored, dtype, entry)
            for data in pieces:
                if data is None:
                    return False
                file.write(data.numpy().data)
            del stored, pieces
            self._release(entry)
        return True

    def _stored(self, entry: TensorEntry) -> StoredTensor:
        """What the source has, in the order of its rows."""
        checkpoint = self._checkpoint
        return (
            checkpoint.in_file_order(entry) if isinstance(checkpoint, GGUFCheckpoint) else checkpoint.stored(entry.name)
        )

    def _release(self, entry: TensorEntry) -> None:
        if isinstance(self._checkpoint, GGUFCheckpoint):
            self._checkpoint.release_entry(entry)
        else:
            self._checkpoint.release(entry.name)


def _planned_type(target: _Target, choice: TypeChoice) -> tuple[str, str]:
    """The type, and why it is not the one asked for."""
    entry = target.entries[0]
    if len({one.dtype for one in target.entries}) > 1:
        raise UnsupportedModel(f"{entry.file}: the experts of {target.name} are stored in different types")
    if target.role == "unknown":
        return entry.dtype, ""
    found = FORMATS.get(entry.dtype)
    if found is None or not found.holds_weights:
        raise UnsupportedModel(f"{entry.file}: {entry.name} is stored as {entry.dtype}, which is not quantised")
    if target.role not in (*_MATRIX_ROLES, "kernel") or len(entry.shape) == 1:
        return F32.name, ""
    wanted = "exact" if target.role == "kernel" else choice.of(entry.name)
    if wanted == "exact":
        return _exact_type(entry), ""
    block = block_format(TYPES[wanted]).block
    if entry.shape[-1] % block:
        return _exact_type(entry), f"its rows of {entry.shape[-1]} are no multiple of {block}"
    return TYPES[wanted], ""


def _exact_type(entry: TensorEntry) -> str:
    """The plain type that holds a tensor's values exactly."""
    name = FORMATS[entry.dtype].values_as
    return name if name in _PLAIN else F32.name


def _pieces(values: torch.Tensor) -> Iterator[torch.Tensor]:
    """Rows, a bounded number of values at a time."""
    import torch

    flat = values.reshape(-1, values.shape[-1]) if values.dim() > 1 else values.reshape(1, -1)
    yield from torch.split(flat, max(1, _PIECE // flat.shape[1]))


def _encoded(stored: StoredTensor, dtype: str, entry: TensorEntry) -> Iterator[torch.Tensor | None]:
    """The tensor's values in ``dtype``, piece by piece; None where it cannot hold them."""
    for piece in _pieces(stored.decode()):
        try:
            yield FORMATS[dtype].encode(piece)
        except FloatingPointError:
            rule = f"{entry.name} holds NaN or infinity, so it cannot be quantised; repair the checkpoint"
            raise CorruptFile(entry.file, rule) from None
