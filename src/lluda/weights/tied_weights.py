"""Whether two stored tensors are one: of a head that shares the embedding's table, and of tensors stored twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lluda.formats.registry import FORMATS
from lluda.weights.entry import Checkpoint

if TYPE_CHECKING:
    import torch

_PIECE = 1 << 22  # values compared at once


def same_values(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors are equal: bit for bit where they have one dtype, else value by value. Reads no further than
    the first piece that differs, and makes no copy of the whole."""
    import torch

    if first.shape != second.shape:
        return False
    exact = first.dtype == second.dtype
    pieces = zip(*(torch.split(each.reshape(-1), _PIECE) for each in (first, second)), strict=True)
    if exact:
        return all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in pieces)
    return all(torch.equal(a.double(), b.double()) for a, b in pieces)


def stored_alike(checkpoint: Checkpoint, first: str, second: str) -> bool:
    """Whether the tensors ``first`` and ``second`` of ``checkpoint`` are equal. Block formats are compared as they are
    stored: two of different formats count as different. What was read of the second is let go."""
    formats = {FORMATS[checkpoint.entries[name].dtype] for name in (first, second)}
    if len(formats) > 1 and not all(one.is_plain for one in formats):
        return False
    try:
        return same_values(_comparable(checkpoint, first), _comparable(checkpoint, second))
    finally:
        checkpoint.release(second)


def _comparable(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """Plain numbers, or the bytes of any other format."""
    stored = checkpoint.stored(name)
    return stored.decode() if stored.format.is_plain else stored.data
