"""Decoder stacks, their heads and the code predictor, as the torch executor runs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lluda.backends.backend import Precision
from lluda.backends.batch import DeepStack, KeyValueStore, Segment
from lluda.backends.blocks import AttentionBlock, MixtureBlock, Norm, SharedExpert, SwiGLUBlock
from lluda.backends.components import CodePredictorSteps, DecoderLayers, Observer
from lluda.backends.executor.operations import RotaryTable, TorchOperations
from lluda.backends.group import Group
from lluda.backends.weight import Weight


@dataclass(frozen=True, slots=True)
class Step:
    """What all layers of one step share: the rows' rotation (cosines and sines ``[rows, head_dim / 2]``) and which
    rows belong to which sequence. A backend may derive its own kind in ``begin_step``."""

    cos: Tensor
    sin: Tensor
    segments: Sequence[Segment]


class DecoderExecutor(TorchOperations):
    """Blocks are ``[rows, hidden]`` in the residual dtype -> the same; the result may be the argument itself, changed
    in place. A branch is what a block adds to its rows: where a tensor-parallel group holds slices of a block, the sum
    of its branches is added once."""

    def __init__(self, device: torch.device, precision: Precision, *, q8_0_rows: bool = False) -> None:
        super().__init__(device, precision, q8_0_rows=q8_0_rows)
        self._code_tables: dict[CodePredictorSteps, RotaryTable] = {}

    def run_layers(
        self,
        layers: DecoderLayers,
        x: Tensor,
        positions: Tensor,
        segments: Sequence[Segment],
        observe: Observer | None = None,
        deepstack: DeepStack | None = None,
    ) -> Tensor:
        """See `ComputeBackend.run_layers`."""
        step = self.begin_step(self.rotary_table(positions, layers.rotary), segments)
        if observe is None and deepstack is None and layers.experts is None:
            return self.decoder_layers(x, layers, step)
        for index in range(len(layers.blocks)):
            x = self.decoder_layer(x, layers, index, step)
            if deepstack is not None and index < len(deepstack.embeddings):
                x[deepstack.rows] += deepstack.embeddings[index].to(x.dtype)
            if observe:
                observe(f"layers.{index}", x)
        return x

    def begin_step(self, table: RotaryTable, segments: Sequence[Segment]) -> Step:
        """What the layers of one step share."""
        return Step(*table, segments)

    def decoder_layers(self, x: Tensor, layers: DecoderLayers, step: Step) -> Tensor:
        """All ``layers``, of which none's experts are on another backend."""
        for index in range(len(layers.blocks)):
            x = self.decoder_layer(x, layers, index, step)
        return x

    def decoder_layer(self, x: Tensor, layers: DecoderLayers, index: int, step: Step) -> Tensor:
        """The same through layer ``index`` alone."""
        attention, feed_forward = layers.blocks[index]
        if layers.group is not None:
            return self.shared_layer(x, layers.group, layers.blocks[index], index, step)
        x = self.attention_block(x, attention, index, step)
        if not isinstance(feed_forward, MixtureBlock):
            return self.swiglu_block(x, feed_forward)
        return self.mixture_block(x, feed_forward) if layers.experts is None else layers.experts(x, feed_forward)

    def shared_layer(
        self, x: Tensor, group: Group, blocks: tuple[AttentionBlock, SwiGLUBlock | MixtureBlock], layer: int, step: Step
    ) -> Tensor:
        """The same of a layer of which this rank of ``group`` has a slice."""
        attention, feed_forward = blocks
        x = x + group.sum(self.attention_branch(x, attention, layer, step).to(x.dtype))
        if isinstance(feed_forward, MixtureBlock):
            branch = self.mixture_branch(x, feed_forward)
        else:
            branch = self.swiglu_branch(x, feed_forward)
        return x + group.sum(branch.to(x.dtype))

    def attention_block(self, x: Tensor, block: AttentionBlock, layer: int, step: Step) -> Tensor:
        """See AttentionBlock. The rows' keys and values are stored as layer ``layer`` of their segments' stores."""
        return x + self.attention_branch(x, block, layer, step)

    def attention_branch(self, x: Tensor, block: AttentionBlock, layer: int, step: Step) -> Tensor:
        """What `attention_block` adds to ``x``."""
        self.torch_blocks["attention"] += 1
        normed = self.rms_norm(x, block.norm)
        query, key, value = (
            self.project(normed, projection).view(len(x), -1, block.head_dim)
            for projection in (block.q_proj, block.k_proj, block.v_proj)
        )
        table = step.cos, step.sin
        query = self.rotate(query, table, block.q_norm)
        key = self.rotate(key, table, block.k_norm)
        attended = self.attention(query, key, value, layer=layer, segments=step.segments, window=block.window)
        return _scaled(self.project(attended, block.o_proj), block.scale)

    def swiglu_block(self, x: Tensor, block: SwiGLUBlock) -> Tensor:
        """See SwiGLUBlock."""
        return x + self.swiglu_branch(x, block)

    def swiglu_branch(self, x: Tensor, block: SwiGLUBlock) -> Tensor:
        """What `swiglu_block` adds to ``x``."""
        self.torch_blocks["swiglu"] += 1
        return _scaled(self.swiglu(self.rms_norm(x, block.norm), block.mlp), block.scale)

    def mixture_block(self, x: Tensor, block: MixtureBlock) -> Tensor:
        """See MixtureBlock."""
        return self._add_mixture(x.clone(), x, block)

    def mixture_branch(self, x: Tensor, block: MixtureBlock) -> Tensor:
        """What `mixture_block` adds to ``x``."""
        return self._add_mixture(torch.zeros_like(x), x, block)

    def _add_mixture(self, out: Tensor, x: Tensor, block: MixtureBlock) -> Tensor:
        """Rows are gathered by expert, so that an expert no row chose is never run or read."""
        self.torch_blocks["mixture"] += 1
        normed = self.rms_norm(x, block.norm)
        weights, ids = self.route(normed, block.router, block.top_k, normalise=block.normalise)
        if block.shared is not None:
            out += self.shared_expert(normed, block.shared)
        for expert in torch.unique(ids).tolist():
            rows, slot = torch.where(ids == expert)
            part = self.swiglu(normed[rows], block.experts[expert])
            out.index_add_(0, rows, part.to(out.dtype) * weights[rows, slot, None])
        return out

    def shared_expert(self, normed: Tensor, shared: SharedExpert) -> Tensor:
        """See SharedExpert: rows ``[rows, hidden]`` in the compute dtype -> the residual dtype."""
        gate = (normed.to(shared.gate.dtype) @ shared.gate.T).sigmoid()
        return self.swiglu(normed, shared.mlp).to(gate.dtype) * gate

    def final_norm(self, x: Tensor, norm: Norm) -> Tensor:
        """See `ComputeBackend.final_norm`."""
        self.torch_blocks["final_norm"] += 1
        return self.rms_norm(x, norm)

    def head(self, x: Tensor, norm: Norm, weight: Weight) -> Tensor:
        """See `ComputeBackend.head`."""
        self.torch_blocks["head"] += 1
        return self.linear(self.rms_norm(x, norm), weight)

    def logits(self, hidden: Tensor, weight: Weight) -> Tensor:
        """See `ComputeBackend.logits`."""
        return self.linear(hidden, weight)

    def predict_codes(
        self,
        x: Tensor,
        passes: CodePredictorSteps,
        stores: Sequence[KeyValueStore],
        choose: Sequence[Callable[[Tensor], int]],
        total: Tensor,
    ) -> list[list[int]]:
        """See `ComputeBackend.predict_codes`."""
        table = self.code_table(passes)
        return [
            self._codes_of_one(x[index], passes, table, store, choose[index], total[index : index + 1])
            for index, store in enumerate(stores)
        ]

    def code_table(self, passes: CodePredictorSteps) -> RotaryTable:
        """The rotation of a frame's positions, the same for every frame: made once."""
        if passes not in self._code_tables:
            positions = torch.arange(len(passes.heads) + 1, device=self.device)
            self._code_tables[passes] = self.rotary_table(positions, passes.layers.rotary)
        return self._code_tables[passes]

    def _codes_of_one(
        self,
        x: Tensor,
        passes: CodePredictorSteps,
        table: RotaryTable,
        store: KeyValueStore,
        choose: Callable[[Tensor], int],
        total: Tensor,
    ) -> list[int]:
        codes: list[int] = []
        for head, embedding in zip(passes.heads, passes.embeddings, strict=True):
            begin, end = store.length, store.length + len(x)
            step = self.begin_step((table[0][begin:end], table[1][begin:end]), [Segment(0, len(x), store)])
            x = self.decoder_layers(x, passes.layers, step)
            store.length = end
            codes.append(choose(self.head(x[-1:], passes.norm, head)[0]))
            x = self.embedding(embedding, torch.tensor(codes[-1:], device=self.device))
            total += x
        return codes


def _scaled(branch: Tensor, scale: Tensor | None) -> Tensor:
    return branch if scale is None else branch * scale
