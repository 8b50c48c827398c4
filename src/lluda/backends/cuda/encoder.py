"""Encoders of sound and pictures on a GPU: a layer in few launches, and all in one for shapes that come again."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lluda.backends.blocks import EncoderBlock, LayerNorm
from lluda.backends.components import ConvStem, EncoderLayers, Merger, Observer, PatchEmbedding
from lluda.backends.cuda.graph import Graph
from lluda.backends.cuda.kernels.triton_rows import add_norm
from lluda.backends.executor.executor import TorchExecutor
from lluda.backends.executor.operations import RotaryTable

MOST_ROWS = 8192
"""Of a captured launch; more rows keep a GPU busy longer than launching takes. A picture of 1,024 x 1,024 has 4,096."""

_GRAPHS, _ROWS = 32, 32768
"""Kept, the last that were used, with so many rows in all: a shape each. They share their memory, but for the rows that
they are given and make."""

_BUCKET, _BUCKETED = 16, 512
"""One run of rows without rotary positions, of up to so many, is filled up to a multiple of the former: sound, whose
last block is of any length."""

Work = Callable[..., Sequence[Tensor]]


class GraphEncoder(TorchExecutor):
    """Layers in which each product's bias is rounded once and each sum with the residual rows is normalised at once."""

    _pdl = _fused = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._shapes = _ShapeGraphs(self.device)

    def conv_stem(self, stem: ConvStem, chunks: Tensor) -> Tensor:
        """See `ComputeBackend.conv_stem`. Captured the second time that a shape comes."""
        if not self._fused:
            return super().conv_stem(stem, chunks)
        key = stem, *chunks.shape
        return self._shapes(key, lambda x: [super(GraphEncoder, self).conv_stem(stem, x)], chunks)[0]

    def embed_patches(
        self, embedding: PatchEmbedding, patches: Tensor, corners: Sequence[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """See `ComputeBackend.embed_patches`. Patches of the host are rounded there, into memory that the GPU reads.
        Captured the second time that a number of patches comes."""
        if self.device.type == "cuda" and patches.device.type == "cpu":
            rounded = torch.empty(patches.shape, dtype=self.precision.compute, pin_memory=True).copy_(patches)
            patches = rounded.to(self.device, non_blocking=True)
        if not self._fused or len(patches) > MOST_ROWS:
            return super().embed_patches(embedding, patches, corners)
        embed = super().embed_patches

        def work(given: Tensor, *flat: Tensor) -> Sequence[Tensor]:
            return [embed(embedding, given, list(zip(flat[::2], flat[1::2], strict=True)))]

        key = embedding, patches.dtype, len(patches)
        return self._shapes(key, work, patches, *chain.from_iterable(corners))[0]

    def encode(
        self,
        layers: EncoderLayers,
        x: Tensor,
        lengths: Sequence[int],
        positions: Tensor | None = None,
        observe: Observer | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """See `ComputeBackend.encode`. Captured the second time that a shape comes."""
        if not self._fused:
            return super().encode(layers, x, lengths, positions, observe)
        count, rotary, given = len(x), layers.rotary, [x]
        key: tuple[object, ...] = layers, *lengths
        if rotary is not None:
            assert positions is not None, "an encoder with rotary positions is told them"
            given.append(positions)
        elif len(lengths) == 1 and count <= _BUCKETED:
            x = _filled_up(x)
            mask = torch.zeros(1, 1, 1, len(x), dtype=self.precision.compute, device=x.device)
            mask[..., count:] = -math.inf
            given, key = [x, mask], (layers, "filled up", len(x))

        def work(x: Tensor, beside: Tensor | None = None) -> Sequence[Tensor]:
            table = self.rotary_table(beside, rotary) if rotary is not None and beside is not None else None
            seen = (lambda stage, rows: observe(stage, rows[:count])) if observe else None
            return self._layers(layers, x, lengths, table, None if rotary is not None else beside, seen)

        out, *deep = work(*given) if observe or len(x) > MOST_ROWS else self._shapes(key, work, *given)
        return out[:count], deep

    def merge(self, merger: Merger, x: Tensor) -> Tensor:
        """See `ComputeBackend.merge`. Captured the second time that a number of rows comes."""
        if not self._fused or len(x) > MOST_ROWS:
            return super().merge(merger, x)
        key, given = (merger, len(filled := _filled_up(x))), filled
        merged = self._shapes(key, lambda x: [super(GraphEncoder, self).merge(merger, x)], given)[0]
        return merged[: x.numel() // merger.inner.weight.in_features]

    def layer_norm(self, x: Tensor, norm: LayerNorm) -> Tensor:
        """See `TorchOperations.layer_norm`."""
        return self._add_norm(x, None, norm)[1] if self._fused else super().layer_norm(x, norm)

    def _layers(
        self,
        layers: EncoderLayers,
        x: Tensor,
        lengths: Sequence[int],
        table: RotaryTable | None,
        mask: Tensor | None,
        observe: Observer | None,
    ) -> list[Tensor]:
        """``x [rows, hidden]`` after all layers, and what each of their `deepstack` made of it. ``mask [1, 1, 1,
        rows]``: 0 for rows that are looked at, -inf for others."""
        deep: list[Tensor] = []
        normed = self.layer_norm(x, layers.blocks[0].norm1)
        following = [block.norm1 for block in layers.blocks[1:]]
        for index, (block, after) in enumerate(zip(layers.blocks, [*following, None], strict=True)):
            self.torch_blocks["encoder_block"] += 1
            attended = self._attended(normed, block, lengths, table, mask)
            x, normed = self._add_norm(x, self.project(attended, block.out), block.norm2)
            branch = self.project(self.gelu(self.project(normed, block.fc1), tanh=block.tanh), block.fc2)
            x, normed = self._add_norm(x, branch, after)
            if observe:
                observe(f"layers.{index}", x)
            if index in layers.deepstack:
                deep.append(super().merge(layers.deepstack[index], x))
        return [x, *deep]

    def _add_norm(self, x: Tensor, branch: Tensor | None, norm: LayerNorm | None) -> tuple[Tensor, Tensor]:
        parts = None if norm is None else (norm.weight, norm.bias, norm.eps)
        return add_norm(x, branch, parts, self.precision.compute, pdl=self._pdl)

    def _attended(
        self, normed: Tensor, block: EncoderBlock, lengths: Sequence[int], table: RotaryTable | None,
        mask: Tensor | None,
    ) -> Tensor:  # fmt: skip
        query, key, value = self._heads(normed, block, table)
        if mask is None:
            return self.block_attention(query, key, value, lengths)
        q, k, v = (part.transpose(0, 1)[None] for part in (query, key, value))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return attended[0].transpose(0, 1).reshape(len(normed), -1)

    def _heads(self, normed: Tensor, block: EncoderBlock, table: RotaryTable | None) -> list[Tensor]:
        """Queries, keys and values ``[rows, heads, head_dim]``, the first two turned by ``table``."""
        projected = [self.project(normed, projection) for projection in block.qkv]
        if len(projected) == 1:
            rows = projected[0].view(len(normed), 3 * block.heads, -1)
            turned = self.rotate(rows[:, : 2 * block.heads], table, None) if table else rows[:, : 2 * block.heads]
            return [*torch.split(turned, block.heads, dim=1), rows[:, 2 * block.heads :]]
        query, key, value = (part.view(len(part), block.heads, -1) for part in projected)
        return [*(self.rotate(part, table, None) if table else part for part in (query, key)), value]


class _ShapeGraphs:
    """Captured work by what it is and the shapes it is given, the last that were used."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._graphs: OrderedDict[tuple[object, ...], _ShapeGraph | None] = OrderedDict()
        self._pool: Any = None

    def __len__(self) -> int:
        return len(self._graphs)

    def __call__(self, key: tuple[object, ...], work: Work, *given: Tensor) -> Sequence[Tensor]:
        """What ``work`` makes of ``given``, of the same shapes wherever ``key`` is the same."""
        if self._device.type != "cuda":
            return work(*given)
        if key not in self._graphs:
            self._graphs[key] = None  # many shapes come once only
            made = work(*given)
        else:
            graph = self._graphs[key]
            if graph is None:
                self._pool = self._pool or torch.cuda.graph_pool_handle()
                graph = self._graphs[key] = _ShapeGraph(work, given, self._pool)
            made = graph(*given)
        self._graphs.move_to_end(key)
        while len(self._graphs) > _GRAPHS or self._rows() > _ROWS:
            self._graphs.popitem(last=False)
        return made

    def _rows(self) -> int:
        return sum(graph.rows for graph in self._graphs.values() if graph)


class _ShapeGraph:
    """Work as one launch, from and to places that do not change."""

    def __init__(self, work: Work, given: Sequence[Tensor], pool: Any) -> None:
        self.rows, self._work, self._given = len(given[0]), work, [part.clone() for part in given]
        self._made: Sequence[Tensor] = ()
        self.graph = Graph(self._body, given[0].device, capture=True, pool=pool)

    def __call__(self, *given: Tensor) -> list[Tensor]:
        """As the work's."""
        for place, part in zip(self._given, given, strict=True):
            place.copy_(part)
        self.graph.launch()
        # The next launch of any of them may write where these lie.
        return [part.clone() for part in self._made]

    def _body(self) -> None:
        self._made = self._work(*self._given)


def _filled_up(x: Tensor) -> Tensor:
    """``x [rows, hidden]`` with zeros behind it up to a multiple of ``_BUCKET`` rows."""
    return F.pad(x, (0, 0, 0, -len(x) % _BUCKET)) if len(x) % _BUCKET else x
