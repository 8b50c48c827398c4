"""What a decode step asks of the backend, written down as launches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from lluda.backends.blocks import AttentionBlock, MixtureBlock, Norm, SharedExpert, SwiGLUBlock
from lluda.backends.components import DecoderLayers, Rotary
from lluda.backends.weight import Weight
from lluda.backends.wgpu.gpu import Buffer, Gpu
from lluda.backends.wgpu.memory.key_values import KeyValuePool
from lluda.backends.wgpu.memory.matrices import Matrices, Matrix
from lluda.backends.wgpu.steps.choice import SampledChoice
from lluda.backends.wgpu.steps.launch import LateRange, Launch, Range, whole
from lluda.backends.wgpu.weight import NoKernel
from lluda.backends.wgpu.wgsl import argmax, attention, embedding, mixture
from lluda.backends.wgpu.wgsl.attention import STATE, Heads
from lluda.backends.wgpu.wgsl.gemv import MAX_BATCH, Mode, Product, gemv, tile_of
from lluda.backends.wgpu.wgsl.shader import Shader, Target

PoolOf = Callable[[int, int, int], KeyValuePool]
"""The pool of stores with so many layers, key heads, and columns of a head."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Cosines and sines of a step's rows, which the host writes: ``[rows, head_dim]``."""

    rotary: Rotary
    buffer: Buffer


@dataclass(slots=True)
class Layers:
    """The step's decoder stack, and where its keys and values are."""

    pool: KeyValuePool
    heads: Heads
    ends: list[int]
    """Launches up to the end of each layer."""


@dataclass(slots=True)
class Step:
    """The launches of a step of ``rows`` rows, and what the host reads and writes: ``state`` (u32 ``[rows, STATE]``),
    ``ids`` (u32 ``[rows]``), ``x`` (float ``[rows, hidden]``), ``chosen`` (key and id of each row's largest logit)."""

    rows: int
    state: Buffer
    ids: Buffer
    x: Buffer
    turn: Turn
    layers: Layers
    chosen: Buffer
    launches: list[Launch]


class StepBuilder:
    """Takes the backend's calls of one step, in turn `embed`, `add_layers` and `head`, as the decoder makes them.
    Hidden states are tensors without memory (torch's meta device), with which nothing else can be done.

    ``launches_at_once``: of one submission, where not all of a step's may be."""

    launches_at_once: int | None = None

    def __init__(
        self, gpu: Gpu, matrices: Matrices, pool_of: PoolOf, rows: int, *, choice: SampledChoice | None = None
    ) -> None:
        """``choice``: how `head` chooses tokens, None: the largest logit's."""
        self._gpu, self._matrices, self._pool_of, self._rows = gpu, matrices, pool_of, rows
        self._choice = choice
        self._batch = min(rows, MAX_BATCH)
        if rows % self._batch:
            raise NoKernel(f"a step of {rows} rows")
        self._launches: list[Launch] = []
        self._scratch: dict[tuple[str, int], Buffer] = {}
        self.state = gpu.buffer(4 * STATE * rows)
        """Of each row what `wgsl.attention.STATE` says."""
        self.ids = gpu.buffer(4 * rows)
        """Of each row whose row of the table is looked up; the head writes the next step's."""
        self._turn: Turn | None = None
        self._layers: Layers | None = None
        self._width = 0

    def embed(self, table: Weight) -> Tensor:
        """Rows of ``table`` of ``ids``."""
        matrix, columns = self._matrices.matrix((((table,),),)), table.in_features
        for part in matrix.parts:
            shader = embedding.lookup(matrix.form, part.first, part.rows, columns)
            ranges = [(part.body, 0, part.nbytes), whole(self.ids), whole(self._rows_of("x", columns))]
            ranges += [whole(part.side)] if part.side else []
            self._launch(shader, ranges, (-(-columns // embedding.WORKGROUP), self._rows, 1))
        return self._hidden(columns)

    def add_layers(self, layers: DecoderLayers, x: Tensor, *, remote: bool = False) -> Tensor:
        """All layers of a stack. ``remote``: the host runs experts on another backend behind their layer's end."""
        if layers.experts is not None and not remote:
            raise NoKernel("experts on another backend")
        if self._layers is not None:
            raise NoKernel("a second decoder stack in one step")
        heads, count = self._heads_of(layers), len(layers.blocks)
        self._width = x.shape[1]
        self._layers = Layers(self._pool_of(count, heads.kv_heads, heads.head_dim), heads, [])
        self._turn = Turn(layers.rotary, self._gpu.buffer(4 * self._rows * heads.head_dim))
        for index, (attended, feed_forward) in enumerate(layers.blocks):
            self._attention(index, attended, x.shape[1])
            if isinstance(feed_forward, MixtureBlock):
                if layers.experts is None:
                    self._mixture(feed_forward, x.shape[1])
            else:
                self._swiglu(feed_forward, x.shape[1])
            self._layers.ends.append(len(self._launches))
        return x

    def head(self, x: Tensor, norm: Norm, weight: Weight) -> Tensor:
        """Logits, and the largest of each row."""
        width, found = weight.out_features, self._rows_of("found", 2 * argmax.GROUPS)
        logits = self.add_logits(x, norm, weight)
        if self._choice is not None:
            self._launches += self._choice.launches(logits, self.ids, self.chosen, width)
            return torch.empty(self._rows, width, device="meta")
        each = 4 * width * self._rows
        self._launch(argmax.partial(width), [(logits, 0, each), whole(found)], (argmax.GROUPS, self._rows, 1))
        self._launch(argmax.final(), [whole(found), whole(self.chosen), whole(self.ids)], (1, self._rows, 1))
        return torch.empty(self._rows, width, device="meta")

    def add_mixture(self, block: MixtureBlock, hidden: int) -> Buffer:
        """A mixture block alone: the rows that it changes, float ``[rows, hidden]``."""
        self._mixture(block, hidden)
        return self._rows_of("x", hidden)

    def add_logits(self, x: Tensor, norm: Norm, weight: Weight) -> Buffer:
        """A head alone: float ``[rows, out_features]``."""
        logits = self.logits(weight.out_features)
        matrix = self._matrices.matrix((((weight,),),))
        self._product(matrix, self._rows_of("x", x.shape[1]), logits, weight.out_features, norm=norm)
        return logits

    @property
    def chosen(self) -> Buffer:
        """Key and id of each row's largest logit."""
        return self._rows_of("chosen", 2)

    def logits(self, width: int) -> Buffer:
        """Where logits of that width are."""
        return self._rows_of("logits", width)

    def given_rows(self, width: int) -> Tensor:
        """Hidden states that the host writes to the step's ``x``."""
        return self._hidden(width)

    def x(self, width: int) -> Buffer:
        """Where hidden states of that width are."""
        return self._rows_of("x", width)

    def take_launches(self) -> list[Launch]:
        """Those since the last time."""
        taken, self._launches = self._launches, []
        return taken

    def finished(self) -> Step:
        """All of it."""
        assert self._turn and self._layers, "a step has layers"
        x = self._rows_of("x", self._width)
        return Step(
            self._rows, self.state, self.ids, x, self._turn, self._layers, self.chosen, self.take_launches()
        )  # fmt: skip

    def _attention(self, layer: int, block: AttentionBlock, hidden: int) -> None:
        assert self._layers and self._turn
        heads, rows, pool = self._layers.heads, self._rows, self._layers.pool
        x, qkv = self._rows_of("x", hidden), self._rows_of("qkv", heads.width)
        attended = self._rows_of("attended", heads.heads * heads.head_dim)
        parts = self._rows_of("parts", heads.heads * heads.splits * heads.part)
        joined = (block.q_proj.weight, block.k_proj.weight, block.v_proj.weight)
        self._product(self._matrices.matrix(((joined,),)), x, qkv, heads.width, norm=block.norm)
        ranges: list[Range | LateRange] = [whole(qkv)]
        ranges += [lambda: (pool.keys[layer], 0, pool.layer_bytes), lambda: (pool.values[layer], 0, pool.layer_bytes)]
        ranges += [whole(self.state), whole(self._turn.buffer), whole(parts)]
        if block.q_norm is not None and block.k_norm is not None:
            ranges.append(whole(self._matrices.vectors(block.q_norm.weight, block.k_norm.weight)))
        self._attend(heads, ranges)
        self._launch(
            attention.combine(heads), [whole(parts), whole(self.state), whole(attended)], (heads.heads, rows, 1)
        )
        self._product(self._matrices.matrix((((block.o_proj.weight,),),)), attended, x, hidden, mode="add")

    def _attend(self, heads: Heads, ranges: Sequence[Range | LateRange]) -> None:
        """Each row is of another sequence: one kernel makes its key, stores it and looks at it."""
        shader = _attention_of(heads, self._gpu.target)
        self._launch(shader, ranges, (heads.kv_heads, heads.splits, self._rows))

    def _swiglu(self, block: SwiGLUBlock, hidden: int) -> None:
        if block.scale is not None:
            raise NoKernel("a block whose result is scaled")
        x, inner = self._rows_of("x", hidden), block.mlp.gate_proj.out_features
        acts = self._rows_of("acts", inner)
        paired = self._matrices.matrix((((block.mlp.gate_proj,), (block.mlp.up_proj,)),))
        self._product(paired, x, acts, inner, norm=block.norm, mode="gated")
        self._product(self._matrices.matrix((((block.mlp.down_proj,),),)), acts, x, hidden, mode="add")

    def _mixture(self, block: MixtureBlock, hidden: int) -> None:
        count, k, shared = len(block.experts), block.top_k, block.shared
        if count > mixture.MAX_EXPERTS:
            raise NoKernel(f"a mixture of {count} of {len(block.router)} experts")
        x, inner = self._rows_of("x", hidden), block.experts[0].gate_proj.out_features
        tensors = [block.router] if shared is None else [block.router, shared.gate]
        width = count + len(tensors) - 1
        logits, choice = self._rows_of("router", width), self._rows_of("choice", mixture.choice_words(k))
        acts = self._rows_of("expert_acts", k * inner)
        router = self._matrices.matrix((((self._matrices.stacked(*tensors),),),))
        self._product(router, x, logits, width, norm=block.norm)
        routing = mixture.route(count, k, normalise=block.normalise, shared=shared is not None)
        self._launch(routing, [whole(logits), whole(choice)], (self._rows, 1, 1))
        gates = self._matrices.matrix(tuple(((e.gate_proj,), (e.up_proj,)) for e in block.experts))
        self._product(gates, x, acts, inner, norm=block.norm, mode="experts", choice=choice, top_k=k)
        if shared is not None:
            self._shared_gate(shared, block.norm, hidden)
        downs = self._matrices.matrix(tuple(((e.down_proj,),) for e in block.experts))
        self._product(downs, acts, x, hidden, mode="mix", choice=choice, top_k=k)
        if shared is not None:
            down = self._matrices.matrix((((shared.mlp.down_proj,),),))
            shared_acts = self._rows_of("shared_acts", shared.mlp.gate_proj.out_features)
            self._product(down, shared_acts, x, hidden, mode="add", choice=choice, top_k=k)

    def _shared_gate(self, shared: SharedExpert, norm: Norm, hidden: int) -> None:
        """Before the experts' sum changes x."""
        inner = shared.mlp.gate_proj.out_features
        paired = self._matrices.matrix((((shared.mlp.gate_proj,), (shared.mlp.up_proj,)),))
        x, acts = self._rows_of("x", hidden), self._rows_of("shared_acts", inner)
        self._product(paired, x, acts, inner, norm=norm, mode="gated")

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
        """Launches of all parts of a matrix. ``choice`` with mode ``add``: the shared expert's gate is in it."""
        layers = {"experts": self._rows * top_k, "mix": self._rows}.get(mode, self._rows // self._batch)
        batch = 1 if mode in ("experts", "mix") else self._batch
        for part in matrix.parts:
            product = Product(
                matrix.form, part.rows, matrix.columns, width, part.first, batch, norm.eps if norm else None, mode,
                top_k, scaled=mode == "add" and choice is not None,
            )  # fmt: skip
            shader, (along_x, along_y) = _gemv_of(product, self._gpu.target)
            ranges = [(part.body, 0, part.nbytes), whole(x), whole(y)]
            ranges += [whole(self._matrices.vectors(norm.weight))] if norm else []
            ranges += [whole(part.side)] if part.side else []
            ranges += [whole(choice)] if choice else []
            self._launch(shader, ranges, (along_x, along_y, layers))

    def _launch(self, shader: Shader, ranges: Sequence[Range | LateRange], grid: tuple[int, int, int]) -> None:
        self._launches.append(Launch(shader, tuple(ranges), grid))

    def _rows_of(self, name: str, width: int) -> Buffer:
        """The step's buffer of that name: float or u32 ``[rows, width]``."""
        if (name, width) not in self._scratch:
            self._scratch[name, width] = self._gpu.buffer(4 * self._rows * width)
        return self._scratch[name, width]

    def _bytes_of(self, name: str, nbytes: int) -> Buffer:
        """The step's memory of that name, for what is used up at once."""
        if (name, nbytes) not in self._scratch:
            self._scratch[name, nbytes] = self._gpu.buffer(nbytes)
        return self._scratch[name, nbytes]

    def _hidden(self, width: int) -> Tensor:
        return torch.empty(self._rows, width, device="meta")

    def _heads_of(self, layers: DecoderLayers) -> Heads:
        """The same in all layers."""
        found = {_heads_of_block(block) for block, _ in layers.blocks}
        if len(found) != 1:
            raise NoKernel("layers with different heads")
        heads = found.pop()
        if not attention.takes(heads):
            raise NoKernel(f"heads of {heads.head_dim} columns, {heads.heads // heads.kv_heads} to a key")
        return heads


def _heads_of_block(block: AttentionBlock) -> Heads:
    biased = any(part.bias is not None for part in (block.q_proj, block.k_proj, block.v_proj, block.o_proj))
    if biased or block.scale is not None or block.window is not None:
        raise NoKernel("attention with biases, a window, or a scaled result")
    q_norm, k_norm = block.q_norm, block.k_norm
    if (q_norm and q_norm.eps) != (k_norm and k_norm.eps):
        raise NoKernel("different norms of queries and keys")
    heads, kv_heads = (part.weight.out_features // block.head_dim for part in (block.q_proj, block.k_proj))
    return Heads(heads, kv_heads, block.head_dim, q_norm.eps if q_norm else None)


@lru_cache(maxsize=256)
def _gemv_of(product: Product, target: Target) -> tuple[Shader, tuple[int, int]]:
    return gemv(product, tile_of(product, target), target)


@lru_cache(maxsize=16)
def _attention_of(heads: Heads, target: Target) -> Shader:
    return attention.attention(heads, target)
