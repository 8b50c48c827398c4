"""The cuda backend: blocks of layers in few launches, and whole steps as one, captured as a graph.

A prompt's rows attend to what is stored and to themselves in one kernel, decode steps in another; experts of more than
a few rows are one grouped launch. It also serves AMD's GPUs through torch's ROCm build, which calls them cuda.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from lluda.backends.backend import Precision
from lluda.backends.batch import DeepStack, Segment
from lluda.backends.blocks import AttentionBlock, MixtureBlock, Projection, SharedExpert, SwiGLU, SwiGLUBlock
from lluda.backends.capabilities import BackendRequest
from lluda.backends.capture import CodeRows, DeviceStore, PromptStore, Run, store_row
from lluda.backends.components import DecoderLayers, Observer, StageObserver
from lluda.backends.cuda.capabilities import CAPABILITIES
from lluda.backends.cuda.coded_weight import PACKED, CodedWeight, coded, pack
from lluda.backends.cuda.encoder import GraphEncoder
from lluda.backends.cuda.gpu_group import GpuGroup, connected
from lluda.backends.cuda.graph import DecodeGraph, Graph
from lluda.backends.cuda.kernels import (
    triton_attention,
    triton_formats,
    triton_gemv,
    triton_grouped,
    triton_mixture,
    triton_products,
    triton_prompt,
    triton_row_sampling,
    triton_sampling,
    triton_shared,
)
from lluda.backends.cuda.kernels.triton_target import compiling, interpreted
from lluda.backends.cuda.operations import KERNEL_TYPES, CudaOperations
from lluda.backends.cuda.prompt_graphs import BUCKETS, PromptGraphs, Rows
from lluda.backends.cuda.vocoder import StreamVocoder
from lluda.backends.executor.decoder import Step
from lluda.backends.executor.operations import RotaryTable
from lluda.backends.group import Group
from lluda.backends.weight import DenseWeight, Weight
from lluda.errors import InvalidRequest
from lluda.formats.plain import plain_format
from lluda.formats.stored_tensor import StoredTensor

_STEP_ROWS = 64
"""Of a captured decode step at most."""


@dataclass(frozen=True, slots=True)
class DeviceStep(Step):
    """A step whose stores are `DeviceStore`s: their ``table``, the ``fresh`` rows that each is given, their dtype, and
    what positions they hold at ``most``, if that is known."""

    table: Tensor
    fresh: int
    cache: torch.dtype
    most: int | None


@dataclass(frozen=True, slots=True)
class PromptStep(Step):
    """A step of the next rows of one sequence, whose place is the one row of ``table``; ``cache``: its dtype."""

    table: Tensor
    cache: torch.dtype


class CudaBackend(StreamVocoder, GraphEncoder, CudaOperations):
    """Triton kernels on one GPU (in Triton's interpreter: on any device, for tests)."""

    name = "cuda"
    CAPABILITIES = CAPABILITIES
    has_kernels = True
    flat_rows = 512
    prompt_rows = BUCKETS

    def __init__(
        self, device: torch.device, precision: Precision, *, packed: bool = False, q8_0_rows: bool = False
    ) -> None:
        taken = torch.device("cuda") if interpreted() else device
        weights, activations = "packed" if packed else "auto", "q8_0" if q8_0_rows else "exact"
        refusal = self.capabilities().refusal(self.name, BackendRequest(taken, precision.name, weights, activations))
        if refusal is not None:
            raise InvalidRequest(refusal)
        super().__init__(device, precision)
        self._packed = packed
        self._forms = {PACKED} if packed else set[str]()
        self.captures = self._fused
        self._experts: dict[MixtureBlock, Tensor | None] = {}
        self._uniforms: dict[MixtureBlock, MixtureBlock] = {}
        self._capturing = device.type == "cuda"
        self._prompts: dict[tuple[DecoderLayers, Rows], dict[str, PromptGraphs]] = {}
        self._axes: dict[DecoderLayers, int] = {}
        self._pool: Any = None
        self._split_prompts = torch.zeros(triton_prompt.COUNTERS, dtype=torch.int32, device=device)
        self._scratch: dict[tuple[int, int, int], triton_attention.DecodeScratch] = {}
        self._zero = torch.zeros((), dtype=precision.residual, device=device)

    def _description(self) -> str:
        """One line for people."""
        compute = str(self.precision.compute).removeprefix("torch.")
        card = self.runtime.name() if self.device.type == "cuda" else "Triton's interpreter"
        weights = f", {' and '.join(sorted(self._forms))} weights" if self._forms else ""
        overlap = ", kernels overlap" if self._pdl else ""
        return f"cuda backend on {self.device} ({card}), {compute}{weights}{overlap}"

    def _take_values(self, values: Tensor) -> tuple[Weight, bool]:
        taken = values.to(self.device, self.precision.compute).contiguous()
        if self._packed:
            return pack(taken), False
        return DenseWeight(taken, plain_format(taken.dtype).name), False

    def _take_as_stored(self, stored: StoredTensor) -> tuple[Weight, bool] | None:
        weight = coded(stored.to(self.device)) if self.precision.compute is torch.bfloat16 else None
        if weight is None:
            return None
        self._forms.add(weight.format)
        return weight, False

    def begin_step(self, table: RotaryTable, segments: Sequence[Segment]) -> Step:
        stores = [segment.store for segment in segments]
        if isinstance(stores[0], PromptStore):
            return PromptStep(*table, segments, stores[0].table, stores[0].dtype)
        if not isinstance(stores[0], DeviceStore):
            return self._launched_step(table, segments)
        fresh = {segment.rows for segment in segments}
        assert len(fresh) == 1, f"sequences of a device step have one number of rows, not {sorted(fresh)}"
        return DeviceStep(*table, segments, stores[0].table, fresh.pop(), stores[0].dtype, stores[0].most)

    def connect(self, group: Group) -> Group:
        return connected(group, self.device, pdl=self._pdl) if self.device.type == "cuda" and self._fused else group

    def shared_layer(
        self, x: Tensor, group: Group, blocks: tuple[AttentionBlock, SwiGLUBlock | MixtureBlock], layer: int, step: Step
    ) -> Tensor:
        attention, feed_forward = blocks
        x = self._add_branches(x, group, lambda onto: self.attention_block(x, attention, layer, step, onto))
        if isinstance(feed_forward, MixtureBlock):
            return self._add_branches(x, group, lambda onto: self.mixture_block(x, feed_forward, onto))
        return self._add_branches(x, group, lambda onto: self.swiglu_block(x, feed_forward, onto))

    def _add_branches(self, x: Tensor, group: Group, block: Callable[[Tensor], Tensor]) -> Tensor:
        """``x`` and what ``block`` adds, on every rank of ``group``, to the zeros that it is given. Many rows are
        summed in the compute dtype, to which products round them in any case."""
        if isinstance(group, GpuGroup) and group.takes(x):
            return group.add(x, block(group.blank(x)))
        return x + group.sum(block(self._zero.expand_as(x)).to(self.precision.compute))

    def attention_block(
        self, x: Tensor, block: AttentionBlock, layer: int, step: Step, onto: Tensor | None = None
    ) -> Tensor:
        """See AttentionBlock. ``onto`` is what the branch is added to, in the place of ``x``."""
        if isinstance(step, PromptStep):
            return self._prompt_rows(x, block, layer, step, onto)
        if not isinstance(step, DeviceStep):
            return (x if onto is None else onto) + self.attention_branch(x, block, layer, step)
        heads, kv_heads = (p.weight.out_features // block.head_dim for p in (block.q_proj, block.k_proj))
        scratch = self._scratch_for(heads, kv_heads, block)
        attended = triton_attention.decode_attention(
            self._qkv(x, block), _norms(block), (step.cos, step.sin), step.table, scratch,
            heads=heads, kv_heads=kv_heads, head_dim=block.head_dim, layer=layer, fresh=step.fresh,
            window=block.window, compute=self.precision.compute, cache=step.cache, most=step.most, pdl=self._pdl,
        )  # fmt: skip
        return self._add(x if onto is None else onto, attended, block.o_proj, block.scale)

    def swiglu_block(self, x: Tensor, block: SwiGLUBlock, onto: Tensor | None = None) -> Tensor:
        """See SwiGLUBlock. ``onto`` is what the branch is added to, in the place of ``x``."""
        mlp, base = block.mlp, x if onto is None else onto
        if self._several(x, mlp.gate_proj, mlp.up_proj, mlp.down_proj):
            normed = self.rms_norm(x, block.norm)
            acts = triton_products.gated(normed, mlp.gate_proj, mlp.up_proj, pdl=self._pdl)
            return self._add(base, acts, Projection(mlp.down_proj), block.scale)
        if not (self._few(x) and self._takes(mlp.gate_proj, mlp.up_proj, mlp.down_proj)):
            return base + self.swiglu_branch(x, block)
        norm = block.norm.weight, block.norm.eps
        acts = triton_gemv.gated(x.contiguous(), norm, mlp.gate_proj, mlp.up_proj, pdl=self._pdl)
        return self._add(base, acts, Projection(mlp.down_proj), block.scale)

    def mixture_block(self, x: Tensor, block: MixtureBlock, onto: Tensor | None = None) -> Tensor:
        """See MixtureBlock. ``onto`` is what the branch is added to, in the place of ``x``."""
        block = self._uniform(block)
        first, shared, table = block.experts[0], block.shared, self._table(block)
        if table is None:
            return self._add_mixture((x if onto is None else onto).clone(), x, block)
        count, width = len(block.experts), first.gate_proj.out_features
        norm, x = (block.norm.weight, block.norm.eps), x.contiguous()
        if not self._few(x):
            normed = self.rms_norm(x, block.norm)
            weights, ids = self.route(normed, block.router, block.top_k, normalise=block.normalise)
            table, decoded = self._plain_experts(first, table, count)
            out = triton_grouped.grouped_mixture(
                x, normed, weights, ids, table, experts=count, width=width, pdl=self._pdl, onto=onto
            )
            del decoded  # whose addresses were in the table
            return out if shared is None else self._add_shared(out, normed, shared)
        inner = shared.mlp.gate_proj.out_features if shared else 0
        routers: list[Weight] = [
            DenseWeight(part, "F32") for part in (block.router, *([shared.gate] if shared else []))
        ]
        logits = triton_gemv.project(x, norm, routers, pdl=self._pdl, compute=self.precision.compute)
        return triton_mixture.mixture(
            x, norm, logits, table, experts=count, top_k=block.top_k, width=width, shared=inner,
            normalise=block.normalise, like=first.gate_proj, pdl=self._pdl,
            onto=None if onto is None else onto.contiguous(),
        )  # fmt: skip

    def decode_graph(
        self, run: Run, rows: int, kv_dtype: torch.dtype, *, sampled: bool = False, capture: bool = True
    ) -> DecodeGraph | None:
        """See `ComputeBackend.decode_graph`; without ``capture`` it runs launch by launch."""
        if not self._fused or kv_dtype not in KERNEL_TYPES or rows > _STEP_ROWS:
            return None
        capture = capture and self._capturing
        choose = self.choose if sampled else self.argmax
        return DecodeGraph(run, choose, rows, kv_dtype, self.device, sampled=sampled, capture=capture)

    def compile(self, works: Sequence[Callable[[], object]]) -> None:
        """See `ComputeBackend.compile`: most of the time the compiler runs without Python's lock."""
        if self.device.type != "cuda":
            return
        self._capturing = False
        try:
            with compiling(os.cpu_count() or 1):
                for work in works:
                    work()
        finally:
            self.synchronize()
            torch.cuda.empty_cache()
            self._capturing = True

    def new_graph(self, body: Callable[[], None], *, capture: bool = True, state: Sequence[Tensor] = ()) -> Graph:
        """See `ComputeBackend.new_graph`."""
        return Graph(body, self.device, capture=capture and self.device.type == "cuda", state=state)

    def host_callback(self, work: Callable[[], object]) -> None:
        if Graph.recording is None:
            super().host_callback(work)
        else:
            Graph.recording.break_for(work)

    def argmax(self, logits: Tensor, *_: Tensor) -> Tensor:
        """First id of the largest of each row of ``[rows, count]``, and the largest: see `triton_sampling.argmax`."""
        return triton_sampling.argmax(logits, pdl=self._pdl)

    def choose(self, logits: Tensor, ids: Tensor, sampling: Tensor) -> Tensor:
        """An id of each row by its own settings: see `triton_row_sampling.choose`."""
        return triton_row_sampling.choose(logits, ids, sampling, pdl=self._pdl)

    def sample(self, logits: Tensor, uniform: Tensor, out: Tensor, peak: Tensor, **settings: Any) -> None:
        """Choose ids on the device: see `triton_sampling.sample`."""
        embedded: CodeRows | None = settings.pop("embedded")
        plain = embedded is not None and isinstance(embedded.table, DenseWeight)
        triton_sampling.sample(
            logits, uniform, out, peak, embedded=embedded if plain else None, pdl=self._pdl, **settings
        )
        if embedded is not None and not plain:
            embedded.rows.copy_(self.embedding(embedded.table, out))
            if embedded.begins:
                embedded.total.zero_()
            embedded.total.add_(embedded.rows)

    @property
    def overlaps(self) -> bool:
        """Whether kernels may start before the one in front of them has ended (for kernels called from outside)."""
        return self._pdl

    def run_layers(
        self,
        layers: DecoderLayers,
        x: Tensor,
        positions: Tensor,
        segments: Sequence[Segment],
        observe: Observer | None = None,
        deepstack: DeepStack | None = None,
    ) -> Tensor:
        """The next rows of a sequence as one launch, where they are not too many."""
        graphs = None
        if deepstack is None and layers.experts is None:
            graphs = self._prompt_graphs(layers, x, segments, observe)
        if graphs is None:
            return super().run_layers(layers, x, positions, segments, observe, deepstack)
        return graphs(x, positions, store_row(segments[0].store, len(x)), observe)

    def _prompt_graphs(
        self, layers: DecoderLayers, x: Tensor, segments: Sequence[Segment], observe: Observer | None
    ) -> PromptGraphs | None:
        """The captured steps for these rows, of any stage where none is wanted; None where they are not of one
        sequence, are too many, or are all shown to an observer."""
        if len(segments) > 1 or len(x) > BUCKETS[-1] or not self._takes_prompt(segments[0]):
            return None
        if not self._capturing and self.device.type == "cuda":
            return None
        if observe is not None and not isinstance(observe, StageObserver):
            return None
        stage = observe.stage if observe is not None and observe.stage.startswith("layers.") else ""
        if layers not in self._axes:
            self._axes[layers] = int(layers.rotary.axes.max()) + 1
        axes = self._axes[layers]
        cache = segments[0].store.reserve(len(x))[0].dtype
        kind = Rows(x.shape[1], x.dtype, axes if axes > 1 else 0, cache)
        by_stage = self._prompts.setdefault((layers, kind), {})
        if not stage and by_stage:
            stage = next(iter(by_stage))
        if stage not in by_stage:
            capture = self._capturing
            self._pool = self._pool or (torch.cuda.graph_pool_handle() if capture else None)
            run = partial(super().run_layers, layers)
            # Filling up saves launches; one by one they need none.
            buckets = BUCKETS if capture else range(1, BUCKETS[-1] + 1)
            by_stage[stage] = PromptGraphs(
                run, kind, stage, self.device, capture=capture, pool=self._pool, buckets=buckets
            )
        return by_stage[stage]

    def _takes_prompt(self, segment: Segment) -> bool:
        """Whether kernels compute these rows as those of a prompt, whose place the host knows."""
        if not self._fused or isinstance(segment.store, DeviceStore):
            return False
        if self.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return False
        return segment.store.reserve(segment.rows)[0].dtype in KERNEL_TYPES

    def _launched_step(self, table: RotaryTable, segments: Sequence[Segment]) -> Step:
        """Of stores that the host knows: kernels take more than a few rows of one."""
        segment = segments[0]
        if len(segments) > 1 or segment.rows <= triton_gemv.MAX_ROWS or not self._takes_prompt(segment):
            return Step(*table, segments)
        place = torch.tensor([[*store_row(segment.store, segment.rows), segment.rows]], device=self.device)
        return PromptStep(*table, segments, place, segment.store.reserve(segment.rows)[0].dtype)

    def _prompt_rows(
        self, x: Tensor, block: AttentionBlock, layer: int, step: PromptStep, onto: Tensor | None
    ) -> Tensor:
        """Attention of a prompt's rows, whose keys and values are stored on the way."""
        parts = block.q_proj, block.k_proj, block.v_proj
        normed, weights = self.rms_norm(x, block.norm), [part.weight for part in parts]
        if self._several(x, *weights) and block.q_proj.bias is None:
            together = triton_products.project(normed, weights, self._sums, pdl=self._pdl)
            qkv = torch.split(together, [weight.out_features for weight in weights], dim=1)
        else:
            qkv = tuple(self.project(normed, part) for part in parts)
        kv_heads = block.k_proj.weight.out_features // block.head_dim
        query = triton_prompt.enter(
            qkv, _norms(block), (step.cos, step.sin), step.table, head_dim=block.head_dim, layer=layer,
            compute=self.precision.compute, cache=step.cache, pdl=self._pdl,
        )  # fmt: skip
        attended = triton_prompt.attend(
            query, step.table, self._split_prompts, kv_heads=kv_heads, layer=layer, window=block.window,
            cache=step.cache, pdl=self._pdl,
        )  # fmt: skip
        return self._add(x if onto is None else onto, attended, block.o_proj, block.scale)

    def _uniform(self, block: MixtureBlock) -> MixtureBlock:
        """The block with all experts in one form, made once: as they are, or else as plain numbers."""
        if block not in self._uniforms:
            mlps = [*block.experts, *([block.shared.mlp] if block.shared else [])]
            if len({weight.format for weight in chain(*map(_matrices, mlps))}) == 1:
                self._uniforms[block] = block
            else:
                plain = [SwiGLU(*map(self._plain, _matrices(mlp))) for mlp in mlps]
                shared = block.shared and replace(block.shared, mlp=plain.pop())
                self._uniforms[block] = replace(block, experts=plain, shared=shared)
        return self._uniforms[block]

    def _table(self, block: MixtureBlock) -> Tensor | None:
        """Addresses of the experts' matrices, the shared expert's last, made once; None if no kernel takes them."""
        if block not in self._experts:
            mlps = [*block.experts, *([block.shared.mlp] if block.shared else [])]
            few = len(block.experts) <= triton_mixture.MAX_EXPERTS
            taken = few and self._takes(*chain(*map(_matrices, mlps)))
            places = [[triton_formats.place_of(w) for w in _matrices(mlp)] for mlp in mlps] if taken else []
            self._experts[block] = torch.tensor(places, device=self.device) if taken else None
        return self._experts[block]

    def _plain_experts(self, like: SwiGLU, table: Tensor, count: int) -> tuple[Tensor, list[Tensor]]:
        """``table``, or one of the first ``count`` experts' numbers where they are coded, and what holds those."""
        if not isinstance(like.gate_proj, CodedWeight):
            return table, []
        decoded = []
        for part, weight in enumerate(_matrices(like)):
            assert isinstance(weight, CodedWeight), "experts are of one form"
            places = table.flatten()[part:]
            decoded.append(triton_formats.decoded_group(weight, places, count, self.precision.compute, pdl=self._pdl))
        index = torch.arange(count, device=self.device)
        columns = [part.data_ptr() + index * (part.stride(0) * part.element_size()) for part in decoded]
        return torch.stack(columns, dim=1), decoded

    def _add_shared(self, out: Tensor, normed: Tensor, shared: SharedExpert) -> Tensor:
        """The shared expert's part of normalised rows, added to ``out`` in place."""
        gate, up, down = _matrices(shared.mlp)
        if not self._several(normed, gate, up, down):
            return out.add_(self.shared_expert(normed, shared))
        acts = triton_products.gated(normed, gate, up, pdl=self._pdl)
        return triton_shared.add_gated(out, normed, shared.gate, self.linear(acts, down), pdl=self._pdl)

    def _scratch_for(self, heads: int, kv_heads: int, block: AttentionBlock) -> triton_attention.DecodeScratch:
        """Made once for each kind of heads."""
        key = kv_heads, heads // kv_heads, block.head_dim
        if key not in self._scratch:
            self._scratch[key] = triton_attention.DecodeScratch(_STEP_ROWS, *key, self.device)
        return self._scratch[key]


def _norms(block: AttentionBlock) -> tuple[tuple[Tensor, float], tuple[Tensor, float]] | None:
    """Weight and epsilon of the query and the key norm."""
    if block.q_norm is None or block.k_norm is None:
        return None
    return (block.q_norm.weight, block.q_norm.eps), (block.k_norm.weight, block.k_norm.eps)


def _matrices(mlp: SwiGLU) -> tuple[Weight, Weight, Weight]:
    return mlp.gate_proj, mlp.up_proj, mlp.down_proj
