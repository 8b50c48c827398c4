"""Many rows through a decoder stack: products by tiles, and rows of one sequence that see each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lluda.backends.blocks import MixtureBlock, Norm, SwiGLUBlock
from lluda.backends.components import DecoderLayers
from lluda.backends.weight import Weight
from lluda.backends.wgpu.gpu import Buffer, Gpu
from lluda.backends.wgpu.memory.matrices import Matrices, Matrix
from lluda.backends.wgpu.steps.launch import LateRange, Range, whole
from lluda.backends.wgpu.steps.step import PoolOf, StepBuilder
from lluda.backends.wgpu.steps.tiled_products import LAUNCHES_AT_ONCE, Plan, TiledProducts
from lluda.backends.wgpu.weight import NoKernel
from lluda.backends.wgpu.wgsl import attention, grouping, mixture, rows, tiled
from lluda.backends.wgpu.wgsl.attention import Heads
from lluda.backends.wgpu.wgsl.gemv import Mode

PROMPT_ROWS = (16, 64, 128, 256)
"""Rows of one step; more would make no product faster."""


_SPLITS = 2
"""Of a row's positions among workgroups, which leave something in memory each."""


def prompt_sizes(rows: int) -> list[int]:
    """The steps that so many rows take: the last ones are filled up."""
    whole, rest = divmod(rows, PROMPT_ROWS[-1])
    last = [next(size for size in PROMPT_ROWS if size >= rest)] if rest else []
    return [PROMPT_ROWS[-1]] * whole + last


class PromptBuilder(StepBuilder):
    """As its base, but that rows may follow each other in one sequence."""

    launches_at_once = LAUNCHES_AT_ONCE

    def __init__(self, gpu: Gpu, matrices: Matrices, pool_of: PoolOf, rows: int) -> None:
        super().__init__(gpu, matrices, pool_of, rows)
        self._products = TiledProducts(matrices, self._launch, self._bytes_of)

    def _heads_of(self, layers: DecoderLayers) -> Heads:
        # Rows keep a GPU busy by themselves; the same splits in steps of all sizes, so that sums have one order.
        return replace(super()._heads_of(layers), splits=_SPLITS)

    def _attend(self, heads: Heads, ranges: Sequence[Range | LateRange]) -> None:
        self._launch(attention.store(heads, self._gpu.target), ranges, (heads.kv_heads, 1, self._rows))
        shader = attention.attention(heads, self._gpu.target, stored=True)
        self._launch(shader, ranges, (heads.kv_heads, heads.splits, self._rows))

    def _swiglu(self, block: SwiGLUBlock, hidden: int) -> None:
        if block.scale is not None:
            raise NoKernel("a block whose result is scaled")
        x = self._rows_of("x", hidden)
        acts = self._gated(block.mlp.gate_proj, block.mlp.up_proj, self._normed(x, block.norm, hidden))
        self._product(self._matrices.matrix((((block.mlp.down_proj,),),)), acts, x, hidden, mode="add")

    def _gated(self, gate: Weight, up: Weight, normed: Buffer) -> Buffer:
        """``silu(gate) * up`` of normed rows."""
        inner = gate.out_features
        both, acts = self._rows_of("gate_up", 2 * inner), self._rows_of("acts", inner)
        paired = self._matrices.matrix((((gate,), (up,)),))
        self._products.add(paired, normed, both, self._rows, 2 * inner, columns=(0, inner))
        shader, grid = rows.gated(inner, self._rows)
        self._launch(shader, [whole(both), whole(acts)], grid)
        return acts

    def _mixture(self, block: MixtureBlock, hidden: int) -> None:
        count, k, shared = len(block.experts), block.top_k, block.shared
        x, inner = self._rows_of("x", hidden), block.experts[0].gate_proj.out_features
        normed, choice = self._normed(x, block.norm, hidden), self._routed(block, hidden)
        plan = self._plan(choice, count, k)
        both = self._rows_of("expert_gate_up", k * 2 * inner)
        gates = self._matrices.matrix(tuple(((e.gate_proj,), (e.up_proj,)) for e in block.experts))
        self._products.add_experts(gates, normed, both, plan, 2 * inner, columns=(0, inner), of_rows=True)
        acts, outputs = self._rows_of("expert_acts", k * inner), self._rows_of("expert_outputs", k * hidden)
        shader, grid = rows.gated(inner, k * self._rows)
        self._launch(shader, [whole(both), whole(acts)], grid)
        downs = self._matrices.matrix(tuple(((e.down_proj,),) for e in block.experts))
        self._products.add_experts(downs, acts, outputs, plan, hidden, of_rows=False)
        ranges = [whole(choice), whole(outputs), whole(x)]
        if shared is not None:
            of_shared = self._rows_of("of_shared", hidden)
            shared_acts = self._gated(shared.mlp.gate_proj, shared.mlp.up_proj, normed)
            self._product(self._matrices.matrix((((shared.mlp.down_proj,),),)), shared_acts, of_shared, hidden)
            ranges.append(whole(of_shared))
        shader, grid = grouping.mix(hidden, k, self._rows, shared=shared is not None)
        self._launch(shader, ranges, grid)

    def _routed(self, block: MixtureBlock, hidden: int) -> Buffer:
        """The rows' experts: the router is as small as a product of few rows, and as exact."""
        count, k, shared = len(block.experts), block.top_k, block.shared
        if count > mixture.MAX_EXPERTS:
            raise NoKernel(f"a mixture of {count} of {len(block.router)} experts")
        tensors = [block.router] if shared is None else [block.router, shared.gate]
        width = count + len(tensors) - 1
        logits, choice = self._rows_of("router", width), self._rows_of("choice", mixture.choice_words(k))
        router = self._matrices.matrix((((self._matrices.stacked(*tensors),),),))
        super()._product(router, self._rows_of("x", hidden), logits, width, norm=block.norm)
        routing = mixture.route(count, k, normalise=block.normalise, shared=shared is not None)
        self._launch(routing, [whole(logits), whole(choice)], (self._rows, 1, 1))
        return choice

    def _plan(self, choice: Buffer, experts: int, top_k: int) -> Plan:
        pairs = self._rows * top_k
        small = pairs < tiled.LARGE // 2 * experts
        tile = tiled.SMALL if small else tiled.LARGE
        buffer = self._bytes_of("plan", 4 * grouping.plan_words(pairs, experts, tile))
        self._launch(grouping.group(experts, top_k, self._rows, tile), [whole(choice), whole(buffer)], (1, 1, 1))
        return Plan(buffer, experts, top_k, grouping.most_tiles(pairs, experts, tile), small)

    def _product(
        self,
        matrix: Matrix,
        x: Buffer,
        y: Buffer,
        width: int,
        *,
        norm: Norm | None = None,
        mode: Mode = "store",
        choice: Buffer | None = None,
        top_k: int = 0,
    ) -> None:
        assert mode in ("store", "add") and choice is None and not top_k, f"mode {mode} of a prompt"
        x = self._normed(x, norm, matrix.columns) if norm else x
        ending = tiled.Ending("add" if mode == "add" else "store")
        self._products.add(matrix, x, y, self._rows, width, ending=ending)

    def _normed(self, x: Buffer, norm: Norm, columns: int) -> Buffer:
        normed = self._rows_of("normed", columns)
        ranges = [whole(x), whole(self._matrices.vectors(norm.weight)), whole(normed)]
        self._launch(rows.normed(columns, norm.eps, self._gpu.target), ranges, (self._rows, 1, 1))
        return normed
