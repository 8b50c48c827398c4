"""Encoders of sound and pictures on a GPU: a layer in few launches, and all layers in one for shapes that come again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lluda.backends.blocks import EncoderBlock, LayerNorm
from lluda.backends.components import EncoderLayers, Observer
from lluda.backends.cuda.graph import Graph
from lluda.backends.cuda.triton_rows import add_norm
from lluda.backends.executor.executor import TorchExecutor
from lluda.backends.executor.operations import RotaryTable

MOST_ROWS = 2048
"""Of a captured launch; more rows keep a GPU busy longer than launching takes."""

_GRAPHS = 24
"""Kept, the last that were used: a shape each, in memory that they share."""

_BUCKET, _BUCKETED = 16, 512
"""One run of rows without rotary positions, of up to so many, is filled up to a multiple of the former: sound, whose
last block is of any length."""


class GraphEncoder(TorchExecutor):
    """Layers in which each product's bias is rounded once and each sum with the residual rows is normalised at once."""

    _pdl = _fused = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._encoders: OrderedDict[tuple[object, ...], _EncoderGraph | None] = OrderedDict()
        self._encoder_pool: Any = None

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
        if len(lengths) == 1 and positions is None and len(x) <= _BUCKETED:
            rows = -(-len(x) // _BUCKET) * _BUCKET
            key: tuple[object, ...] = layers, rows
        else:
            rows, key = len(x), (layers, *lengths)
        run = _EncoderRun(self, layers, rows, lengths)
        if observe is not None or len(x) > MOST_ROWS or self.device.type != "cuda":
            return run(x, positions, observe)
        if key not in self._encoders:
            self._encoders[key] = None  # many shapes come once only
            return self._kept(key, run(x, positions, None))
        graph = self._encoders[key]
        if graph is None:
            self._encoder_pool = self._encoder_pool or torch.cuda.graph_pool_handle()
            graph = self._encoders[key] = _EncoderGraph(run, x, positions, self._encoder_pool)
        return self._kept(key, graph(x, positions))

    def encoder_layers(
        self,
        layers: EncoderLayers,
        x: Tensor,
        lengths: Sequence[int],
        table: RotaryTable | None,
        mask: Tensor | None,
        observe: Observer | None,
    ) -> tuple[Tensor, list[Tensor]]:
        """All layers of ``x [rows, hidden]``; ``mask [rows]``: which of one run's rows are looked at."""
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
                deep.append(self.merge(layers.deepstack[index], x))
        return x, deep

    def layer_norm(self, x: Tensor, norm: LayerNorm) -> Tensor:
        if not self._fused:
            return super().layer_norm(x, norm)
        return self._add_norm(x, None, norm)[1]

    def _add_norm(self, x: Tensor, branch: Tensor | None, norm: LayerNorm | None) -> tuple[Tensor, Tensor]:
        parts = None if norm is None else (norm.weight, norm.bias, norm.eps)
        return add_norm(x, branch, parts, self.precision.compute, pdl=self._pdl)

    def _attended(
        self, normed: Tensor, block: EncoderBlock, lengths: Sequence[int], table: RotaryTable | None,
        mask: Tensor | None,
    ) -> Tensor:  # fmt: skip
        projected = [self.project(normed, projection) for projection in block.qkv]
        parts = projected if len(projected) == 3 else projected[0].chunk(3, dim=-1)
        query, key, value = (part.reshape(len(part), block.heads, -1) for part in parts)
        if table is not None:
            query, key = (self.rotate(part, table, None) for part in (query, key))
        if mask is None:
            return self.block_attention(query, key, value, lengths)
        q, k, v = (part.transpose(0, 1)[None] for part in (query, key, value))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[None, None, None])
        return attended[0].transpose(0, 1).reshape(len(normed), -1)

    def _kept(self, key: tuple[object, ...], result: tuple[Tensor, list[Tensor]]) -> tuple[Tensor, list[Tensor]]:
        """The result, after which ``key`` is the shape that was used last."""
        self._encoders.move_to_end(key)
        if len(self._encoders) > _GRAPHS:
            self._encoders.popitem(last=False)
        return result


class _EncoderRun:
    """All layers over ``rows`` rows: where there are fewer (of one run), zeros fill them up, which nobody looks at."""

    def __init__(self, backend: GraphEncoder, layers: EncoderLayers, rows: int, lengths: Sequence[int]) -> None:
        self.rows, self._backend, self._layers, self._lengths = rows, backend, layers, lengths
        self.device = backend.device

    @property
    def is_filled_up(self) -> bool:
        """Whether it takes fewer rows, too."""
        return len(self._lengths) == 1 and self._layers.rotary is None and self.rows <= _BUCKETED

    def __call__(self, x: Tensor, positions: Tensor | None, observe: Observer | None) -> tuple[Tensor, list[Tensor]]:
        """Of ``x [up to rows, hidden]`` at ``positions [axes, rows]``, where the layers are rotary."""
        rows, count = len(x), torch.full((1,), len(x), device=self.device)
        if rows < self.rows:
            x = F.pad(x, (0, 0, 0, self.rows - rows))
        shown = (lambda stage, all_rows: observe(stage, all_rows[:rows])) if observe else None
        out, deep = self.body(x, positions, count, shown)
        return out[:rows], deep

    def body(
        self, x: Tensor, positions: Tensor | None, count: Tensor, observe: Observer | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Of ``x [rows, hidden]``, of which the first ``count [1]`` are looked at."""
        table = mask = None
        if self._layers.rotary is not None:
            assert positions is not None, "an encoder with rotary positions is told them"
            table = self._backend.rotary_table(positions, self._layers.rotary)
        if self.is_filled_up:
            mask = torch.arange(self.rows, device=self.device) < count
        return self._backend.encoder_layers(self._layers, x, self._lengths, table, mask, observe)


class _EncoderGraph:
    """A run as one launch, from and to places that do not change."""

    def __init__(self, run: _EncoderRun, x: Tensor, positions: Tensor | None, pool: Any) -> None:
        self._run = run
        self._x = torch.zeros(run.rows, x.shape[1], dtype=x.dtype, device=run.device)
        self._positions = None if positions is None else torch.zeros_like(positions)
        self._count = torch.zeros(1, dtype=torch.int64, device=run.device)
        self._out: tuple[Tensor, list[Tensor]] = self._x, []
        self._fill(x, positions)
        self._graph = Graph(self._body, run.device, capture=True, pool=pool)

    def __call__(self, x: Tensor, positions: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """As the run's."""
        self._fill(x, positions)
        self._graph.launch()
        out, deep = self._out
        # The next launch of any of them may write where these lie.
        return out[: len(x)].clone(), [part.clone() for part in deep]

    def _fill(self, x: Tensor, positions: Tensor | None) -> None:
        self._x[: len(x)] = x
        self._x[len(x) :].zero_()
        self._count.fill_(len(x))
        if self._positions is not None and positions is not None:
            self._positions.copy_(positions)

    def _body(self) -> None:
        self._out = self._run.body(self._x, self._positions, self._count)
