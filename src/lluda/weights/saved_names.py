"""The names under which transformers and trainers store tensors, and their released names.

Models know the released names alone. transformers 5 keeps the experts of a layer in two tensors
(``mlp.experts.gate_up_proj``, ``mlp.experts.down_proj``) and the parts of the thinker below ``thinker.model``, and
stores them so with ``save_original_format=False``. A base model saved without its head lacks ``model.``, a thinker
saved by itself ``thinker.``. What is fused is not copied: each expert's matrix is an entry of its own, which points
into the stored tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from lluda.errors import CorruptFile, UnsupportedModel
from lluda.weights.entry import TensorEntry

_RENAMED = {
    "thinker.model.language_model.": "thinker.model.",
    "thinker.model.audio_tower.": "thinker.audio_tower.",
    "thinker.model.visual.": "thinker.visual.",
    "embed_tokens.": "model.embed_tokens.",
    "layers.": "model.layers.",
    "norm.": "model.norm.",
}
"""What a name begins with, and what with instead. transformers renames the same when it loads (5.23,
conversion_mapping.py, and ``base_model_prefix``)."""

_BEGINNINGS = tuple(_RENAMED)

_FUSED = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
"""Tensors of all experts ``[experts, rows, columns]`` and the matrices that are stacked in them."""

_FUSED_ENDS = tuple(f".mlp.experts.{part}" for part in _FUSED)

_MAX_EXPERT_MATRICES = 200_000
"""Entries made of fused tensors; Qwen3-235B-A22B has 36,096. Without a limit a small file could fill the memory."""


_OF_A_THINKER = ("audio_tower.", "visual.", "model.audio_tower.", "model.visual.")
"""What names of a thinker's encoders begin with where it was saved by itself."""


def missing_prefix(names: Iterable[str]) -> str:
    """What all stored ``names`` of a checkpoint lack: ``thinker.`` where it was saved by itself, else nothing."""
    return "thinker." if any(name.startswith(_OF_A_THINKER) for name in names) else ""


def released_name(name: str) -> str:
    """The released name of a stored tensor, whole but for `missing_prefix`; one not known stays as it is."""
    if not name.startswith(_BEGINNINGS):  # as nearly all of 28,010 names: this is done at every start
        return name
    return next(new + name.removeprefix(old) for old, new in _RENAMED.items() if name.startswith(old))


def require_listable(entries: Iterable[TensorEntry]) -> None:
    """UnsupportedModel if the fused experts of a checkpoint's stored tensors are more than any model has, before they
    are listed one by one."""
    made = 0
    for entry in entries:
        _, matrices = _fused(entry.name)
        made += len(matrices) * entry.shape[0] if matrices and entry.shape else 0
        if made > _MAX_EXPERT_MATRICES:
            raise UnsupportedModel(
                f"{entry.file}: fused experts of more than {_MAX_EXPERT_MATRICES:,} matrices; no model has so many"
            )


def released_entries(entries: Iterable[TensorEntry], prefix: str = "") -> Iterator[TensorEntry]:
    """Stored tensors under their released names, fused experts one by one; ``prefix`` is `missing_prefix`.
    CorruptFile: a fused tensor that cannot be divided."""
    for entry in entries:
        name = released_name(prefix + entry.name)
        block, matrices = _fused(name)
        if matrices:
            yield from _experts(entry, block, matrices)
        else:
            yield entry if name == entry.name else replace(entry, name=name)


def _fused(name: str) -> tuple[str, tuple[str, ...]]:
    """The name of the experts that a tensor holds all of, and the matrices it holds of each; none for another one."""
    if not name.endswith(_FUSED_ENDS):
        return "", ()
    block, _, part = name.rpartition(".")
    return block, _FUSED[part]


def _experts(entry: TensorEntry, block: str, matrices: tuple[str, ...]) -> Iterator[TensorEntry]:
    if len(entry.shape) != 3 or 0 in entry.shape or entry.shape[1] % len(matrices):
        rule = f"{entry.name!r:.120} must have three dimensions above 0, the second a multiple of {len(matrices)}"
        raise CorruptFile(entry.file, rule, found=list(entry.shape))
    experts, rows, columns = entry.shape
    nbytes = entry.nbytes // (experts * len(matrices))
    for expert in range(experts):
        for index, matrix in enumerate(matrices):
            yield replace(
                entry,
                name=f"{block}.{expert}.{matrix}.weight",
                shape=(rows // len(matrices), columns),
                nbytes=nbytes,
                offset=entry.offset + (expert * len(matrices) + index) * nbytes,
            )
