"""From names to parameters: what a model declares, what a checkpoint holds, and a strict report of the difference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import torch

from lluda.errors import CorruptFile, InvalidRequest, UnsupportedModel
from lluda.formats.registry import FORMATS
from lluda.formats.stored_tensor import StoredTensor
from lluda.parameters import WHOLE, ParameterSpec, Share
from lluda.weights.entry import Checkpoint, TensorEntry
from lluda.weights.foreign_formats import foreign_tensors
from lluda.weights.parts import stored_part

CheckTensors = Literal["auto", "warn", "fail", "off"]
Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""

T = TypeVar("T")
Take = Callable[[ParameterSpec, StoredTensor], tuple[T, bool]]
"""Takes a stored tensor to where it will be used; also says whether the result still reads the stored bytes."""

_LISTED = 10
_SMALL = 1 << 16  # bytes that are read with their neighbours in any case


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What loading did. ``tied`` names tensors that share another's values, ``stored_twice`` those of them that the
    checkpoint stores all the same (not read), ``unexpected`` tensors that were skipped by permission, ``skipped`` those
    of other components, ``suspicious`` one sentence for each tensor with values no trained model has, ``converted``
    counts tensors that were copied into another type or place, ``incompressible`` names matrices that stay BF16 where
    others are packed, ``sizes`` has the bytes that each tensor takes in memory, ``formats`` counts matrices by how they
    are held, ``decoded`` counts, by their format in the file, tensors that are held as decoded numbers instead,
    ``notices`` say what is done otherwise than a config says."""

    loaded: int
    nbytes: int
    converted: int
    tied: tuple[str, ...]
    stored_twice: tuple[str, ...]
    unexpected: tuple[str, ...]
    suspicious: tuple[str, ...]
    incompressible: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    formats: Mapping[str, int] = field(default_factory=dict)
    decoded: Mapping[str, int] = field(default_factory=dict)
    notices: tuple[str, ...] = ()

    def describe(self) -> str:
        """The report in one line."""
        parts = [f"{self.loaded} tensors, {self.nbytes / 1e9:.2f} GB"]
        parts += [f"{self.converted} converted"] if self.converted else []
        counts = ", ".join(f"{count} {name}" for name, count in self.formats.items())
        parts += [f"matrices held as {counts}"] if any(map(_is_coded, self.formats)) else []
        parts += [f"{count} decoded from {name}" for name, count in self.decoded.items()]
        parts += [f"tied: {', '.join(self.tied)}"] if self.tied else []
        parts += [f"stored twice: {', '.join(self.stored_twice)}"] if self.stored_twice else []
        parts += [f"{len(self.unexpected)} unexpected skipped"] if self.unexpected else []
        parts += [f"{len(self.skipped)} of other components left alone"] if self.skipped else []
        parts += [f"kept BF16, as they do not compress: {listed(self.incompressible)}"] if self.incompressible else []
        parts += self.notices
        return "; ".join(parts)


def load_tensors(
    checkpoint: Checkpoint,
    specs: Sequence[ParameterSpec],
    *,
    take: Take[T],
    skip: tuple[str, ...] = (),
    share: Share = WHOLE,
    allow_unexpected: bool = False,
    check: CheckTensors = "auto",
    progress: Progress | None = None,
) -> tuple[dict[str, T], LoadReport]:
    """All tensors of ``specs``, each given to ``take`` as it lies, so that there are never two copies of a model: the
    pages of one that was copied are released at once. Of a ``share`` only its part of each is read. Names
    that begin with one of ``skip`` belong to other components and are left alone.

    ``check`` looks at values: NaN or infinity anywhere and all-zero norms are reported, or refused with ``fail``.
    ``warn`` and ``fail`` read every byte for it; ``auto`` looks only at tensors that are read in any case, since they
    are copied or small, or whose format shows it without a full read, so what stays mapped is read when it is used.

    Raises:
        CorruptFile: tensors missing, unexpected or of the wrong shape (the first ten are listed); values refused.
        UnsupportedModel: a storage type that holds no plain numbers (fp8, integers).
        InvalidRequest: a tensor that ``share``'s ranks cannot share.
    """
    if check not in ("auto", "warn", "fail", "off"):
        raise InvalidRequest(f"check_tensors {check!r} is not one of auto, warn, fail, off")
    wanted = {spec.name: spec for spec in specs}
    skipped = [name for name in checkpoint.entries if name not in wanted and name.startswith(skip)] if skip else []
    others = checkpoint.entries.keys() - wanted.keys() - set(skipped)
    stored_as = tied_sources(checkpoint.entries, specs)
    unexpected = [] if allow_unexpected else [name for name in checkpoint.entries if name in others]
    _refuse_mismatch(checkpoint, wanted, stored_as, unexpected)
    tied = [spec.name for spec in specs if spec.tied_to]
    read = [spec for spec in specs if not spec.tied_to]
    total = sum(checkpoint.entries[stored_as.get(spec.name, spec.name)].nbytes for spec in read)
    placed: dict[str, T] = {}
    suspicious: list[str] = []
    done = converted = 0
    for spec in read:
        name = stored_as.get(spec.name, spec.name)
        whole = checkpoint.stored(name)
        stored = stored_part(whole, spec, share)
        placed[spec.name], reads_stored = take(spec, stored)
        is_copied = not reads_stored or (stored is not whole and spec.axis == 1)
        is_read = stored.format.checks_finiteness or is_copied or stored.nbytes <= _SMALL
        if check in ("warn", "fail") or (check == "auto" and is_read):
            suspicious += _suspicions(spec, stored)
        if not reads_stored:
            converted += 1
        if is_copied:
            checkpoint.release(name)
        done += checkpoint.entries[name].nbytes
        if progress:
            progress(done, total)
    # A file replaced while it was read would otherwise give tensors of two checkpoints.
    checkpoint.check_unchanged()
    if suspicious and check == "fail":
        raise CorruptFile(checkpoint.path, _first("tensors with values no trained model has", suspicious))
    return placed, LoadReport(
        loaded=len(read),
        nbytes=total,
        converted=converted,
        tied=tuple(tied),
        stored_twice=tuple(n for n in tied if n in checkpoint.entries and n not in stored_as.values()),
        unexpected=tuple(name for name in checkpoint.entries if name in others),
        skipped=tuple(skipped),
        suspicious=tuple(suspicious),
    )


def tied_sources(entries: Mapping[str, TensorEntry], specs: Sequence[ParameterSpec]) -> dict[str, str]:
    """Parameters that are stored only under the name of one tied to them, and that name: safetensors' ``save_model``
    keeps ``lm_head.weight`` of the two, and transformers ties either way."""
    return {
        spec.tied_to: spec.name
        for spec in specs
        if spec.tied_to and spec.tied_to not in entries and spec.name in entries
    }


def _refuse_mismatch(
    checkpoint: Checkpoint, wanted: dict[str, ParameterSpec], stored_as: Mapping[str, str], others: Sequence[str]
) -> None:
    entries = checkpoint.entries
    missing = [
        name for name, spec in wanted.items() if name not in entries and name not in stored_as and not spec.tied_to
    ]
    # Old Llama checkpoints store the rotary frequencies, which follow from the config.
    unexpected = [name for name in others if not name.endswith("rotary_emb.inv_freq")]
    wrong = [
        f"{name} (expected {list(spec.shape)}, found {list(entries[name].shape)})"
        for name, spec in wanted.items()
        if name in entries and entries[name].shape != spec.shape
    ]
    problems = []
    if missing:
        problems.append(_first("missing tensors", missing))
    if wrong:
        problems.append(_first("tensors of the wrong shape", wrong))
    if unexpected:
        listing = _first("unexpected tensors", unexpected)
        problems.append(f"{listing} (--allow-unexpected, allow_unexpected=True skips them)")
    if problems:
        foreign = foreign_tensors(entries.keys(), wanted.keys())
        raise CorruptFile(checkpoint.path, foreign or "; ".join(problems))
    for name in wanted:
        if name in entries:
            _refuse_storage(entries[name])


def _is_coded(name: str) -> bool:
    return name in FORMATS and not FORMATS[name].is_plain


def _refuse_storage(entry: TensorEntry) -> None:
    found = FORMATS.get(entry.dtype)
    if found is None or not found.holds_weights:
        raise UnsupportedModel(
            f"{entry.file}: {entry.name} is stored as {entry.dtype}; lluda reads BF16, F16 and F32 weights (and GGUF's)"
            "; take the BF16 release of this model"
        )


def _suspicions(spec: ParameterSpec, stored: StoredTensor) -> list[str]:
    if spec.role != "norm" and stored.surely_finite():
        return []
    values = stored.decode()
    if not values.numel():
        return []
    # One pass: NaN propagates through both extremes, infinity is one of them.
    low, high = torch.aminmax(values)
    if not bool(torch.isfinite(low) & torch.isfinite(high)):
        return [f"{spec.name} holds NaN or infinity"]
    if spec.role == "norm" and float(low) == float(high) == 0.0:
        return [f"{spec.name} is a norm of zeros"]
    return []


def listed(names: Sequence[str], limit: int = 3) -> str:
    """The first names of many, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _first(what: str, names: Sequence[str]) -> str:
    return f"{len(names)} {what}: {listed(names, _LISTED)}"
