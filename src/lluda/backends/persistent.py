"""Small dense networks whose layers run in one launch (`triton_persistent`): which they are, and what one needs. Slower
than a launch for each part of a layer as it is (journal/11-gpu.md), so that it is used on request alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from lluda.backends.blocks import AttentionBlock, DecoderLayers, DenseWeight, SwiGLUBlock, Weight
from lluda.backends.triton_attention import EVERYTHING, DecodeScratch, padded_group, wide
from lluda.backends.triton_formats import TYPES, place_of
from lluda.backends.triton_persistent import run_layers
from lluda.backends.triton_target import interpreted

_MOST_BYTES = 96 << 10
"""Of a phase's weights that one program takes, which lie in registers while it waits."""

_ROWS, _LEAST_ROWS = 32, 4
_WARPS, _BLOCK, _LEAST = 8, 64, 256
_WIDTHS = {"X": 256, "A": 1024, "I": 1024}
assert min(_WIDTHS.values()) >= 32 * _WARPS, (
    "a word must be read by one thread: of several, only one's would be checked"
)


@dataclass(frozen=True, slots=True)
class _Shape:
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    dtype: torch.dtype
    norms: bool
    scales: bool


class PersistentLayers:
    """The ``layers`` of a network for which `takes` holds, over one row; launches of one network follow each other.

    ``programs`` run side by side, which must be no more than the device has multiprocessors."""

    def __init__(self, layers: DecoderLayers, programs: int, device: torch.device) -> None:
        shape = _shape_of(layers)
        assert shape is not None, "takes() was not asked"
        blocks = [(attention, feed) for attention, feed in layers.blocks if isinstance(feed, SwiGLUBlock)]
        self._shape, self._programs, self._layers = shape, programs, len(blocks)
        places = [[*map(place_of, _matrices(*pair)), pair[0].window or EVERYTHING] for pair in blocks]
        self._table = torch.tensor(places, device=device)
        self._norms = torch.stack([part.norm.weight for pair in blocks for part in pair]).float()
        heads = [norm.weight for attention, _ in blocks for norm in (attention.q_norm, attention.k_norm) if norm]
        self._head_norms = torch.stack(heads).float() if heads else self._norms
        scales = [part.scale for pair in blocks for part in pair if part.scale is not None]
        self._scales = torch.stack(scales).float() if scales else self._norms
        wide_q, wide_kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        words = 2 * wide_q + 2 * wide_kv + 2 * shape.hidden + shape.inner
        self._words = torch.zeros(words, dtype=torch.int64, device=device)
        self._epochs = torch.zeros(programs, dtype=torch.int32, device=device)
        splits = max(1, min(32, programs // shape.kv_heads)) if not interpreted() else 4
        group = shape.heads // shape.kv_heads + 2  # with the key head and its values
        self._scratch = DecodeScratch(1, shape.kv_heads, group, shape.head_dim, device, splits)
        self._options: dict[str, Any] = {
            "PROGRAMS": programs, "HIDDEN": shape.hidden, "INNER": shape.inner, "HEADS": shape.heads,
            "KV_HEADS": shape.kv_heads, "HALF": shape.head_dim // 2, "WIDE": wide(shape.head_dim),
            "PADDED": padded_group(group), "BLOCK": _BLOCK, "SPLITS": splits, "LEAST": _LEAST,
            **_parts("QKV", wide_q + 2 * wide_kv, programs), **_parts("X", shape.hidden, programs),
            **_parts("I", shape.inner, programs), **_columns("X", shape.hidden),
            **_columns("A", wide_q), **_columns("I", shape.inner), "NORM": shape.norms, "SCALE": shape.scales,
            "WEIGHT": TYPES[shape.dtype], "num_warps": _WARPS, "launch_cooperative_grid": True,
        }  # fmt: skip

    def run(self, x: Tensor, cos: Tensor, sin: Tensor, store: Tensor, cache: torch.dtype) -> Tensor:
        """Contiguous residual rows ``x [rows, hidden]``, float32, through all layers in place: one after the other,
        they are the next of the sequence whose ``store`` is a row of a table (`DeviceStore`) of buffers of ``cache``;
        ``cos`` and ``sin [rows, head_dim / 2]``."""
        for row in range(len(x)):
            run_layers[(self._programs,)](
                x[row], cos[row], sin[row], store, self._table, self._norms, self._head_norms, self._scales,
                self._words, self._epochs, self._scratch.parts, self._scratch.stats, self._scratch.counters,
                self._shape.eps, self._layers, row, CACHE=TYPES[cache], **self._options,
            )  # fmt: skip
        return x


def takes(layers: DecoderLayers, programs: int) -> bool:
    """Whether these layers are dense, alike, of plain numbers, and so small that ``programs`` hold a phase of them."""
    shape = _shape_of(layers)
    if shape is None or interpreted():
        return shape is not None
    size = torch.empty(0, dtype=shape.dtype).element_size()
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    ahead = (q + 2 * kv) * shape.hidden, shape.hidden * q, 2 * shape.inner * shape.hidden
    return all(triton.cdiv(numbers, programs) * size <= _MOST_BYTES for numbers in ahead)


def _shape_of(layers: DecoderLayers) -> _Shape | None:
    """What all layers have in common, if they are of a kind that the kernel knows."""
    shapes = {_layer_shape(attention, feed) for attention, feed in layers.blocks}
    return shapes.pop() if len(shapes) == 1 else None


def _layer_shape(attention: AttentionBlock, feed: object) -> _Shape | None:
    if not isinstance(feed, SwiGLUBlock):
        return None
    projections = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
    weights = _matrices(attention, feed)
    norms = [norm for norm in (attention.q_norm, attention.k_norm) if norm]
    epsilons = {norm.eps for norm in (attention.norm, feed.norm, *norms)}
    dtypes = {weight.values.dtype if isinstance(weight, DenseWeight) else None for weight in weights}
    dtype, eps = dtypes.pop(), epsilons.pop()
    scales = (attention.scale is not None) + (feed.scale is not None)
    alike = not dtypes and not epsilons and len(norms) != 1 and scales != 1
    whole = 2 * wide(attention.head_dim) == attention.head_dim
    if not (alike and whole) or dtype not in TYPES or any(part.bias is not None for part in projections):
        return None
    heads, kv_heads = (weight.out_features // attention.head_dim for weight in weights[:2])
    return _Shape(
        attention.o_proj.weight.out_features, feed.mlp.gate_proj.out_features, heads, kv_heads, attention.head_dim,
        eps, dtype, bool(norms), bool(scales),
    )  # fmt: skip


def _matrices(attention: AttentionBlock, feed: SwiGLUBlock) -> list[Weight]:
    """In the order of the kernel's table."""
    projections = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
    return [*(part.weight for part in projections), feed.mlp.gate_proj, feed.mlp.up_proj, feed.mlp.down_proj]


def _parts(name: str, rows: int, programs: int) -> dict[str, int]:
    """How many tiles of how many rows a program takes of a matrix: as few more than its share as tiles of powers of two
    allow."""
    share = triton.cdiv(triton.cdiv(rows, programs), _LEAST_ROWS) * _LEAST_ROWS
    each = min(share & -share, _ROWS)
    return {f"{name}_PARTS": share // each, f"{name}_ROWS": each}


def _columns(name: str, width: int) -> dict[str, int]:
    """How many tiles of how many columns a row takes."""
    wide = _WIDTHS[name]
    return {f"{name}_DEEP": triton.cdiv(width, wide), f"{name}_WIDE": wide}
