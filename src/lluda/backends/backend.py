"""The ComputeBackend seam: one table of operations that every model is written in.

Rows are the unit: all sequences of a step stand below each other in one ``[rows, width]`` tensor, without padding, and
only attention looks at which rows belong together. A backend knows tensors and integers, never configs or names.

Primitive operations are abstract. The residual blocks have a definition here in terms of the primitives, which is what
they mean; a backend overrides them where one pass is faster than several.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lluda.backends.blocks import (
    AttentionBlock,
    CodePredictorSteps,
    ConvContext,
    DecoderLayers,
    EncoderBlock,
    KeyValueStore,
    LayerNorm,
    MixtureBlock,
    Norm,
    Projection,
    ResidualUnit,
    Segment,
    SharedExpert,
    Step,
    SwiGLU,
    SwiGLUBlock,
    Weight,
)

if TYPE_CHECKING:
    from lluda.backends.cuda.graph import DecodeGraph, Run

Observer = Callable[[str, Tensor], None]
Layers = Callable[[Tensor, Tensor, Sequence[Segment], Observer | None], Tensor]
"""The layers of a stack: residual rows, positions, segments and whom to tell of each layer's rows -> residual rows."""

_MIN_WINDOWS, _WINDOW_ELEMENTS = 256, 1 << 20
"""Windows of a convolution that are copied out at once: so many numbers, but enough rows to make a product of."""

RotaryTable = tuple[Tensor, Tensor]
"""Cosines and sines, each ``[rows, head_dim / 2]``."""


@dataclass(frozen=True, slots=True)
class Precision:
    """Which dtype holds what. ``compute`` is what matrices and their inputs are in, ``residual`` the residual stream
    and the vectors added to or multiplied with it, ``rotary`` the rotation angles."""

    compute: torch.dtype
    residual: torch.dtype
    rotary: torch.dtype

    @classmethod
    def of(cls, name: str) -> Precision:
        """The policy for a dtype name. In BF16 only matrix inputs are rounded: the residual stream and all that acts on
        it stay float32, which is what puts a BF16 run nearer to the float64 truth (docs/numerics.md)."""
        if name == "bf16":
            return cls(torch.bfloat16, torch.float32, torch.float32)
        exact = {"f32": torch.float32, "f64": torch.float64}[name]
        return cls(exact, exact, exact)


class ComputeBackend(ABC):
    """The operations, on one ``device`` in one ``precision``. Chosen once at load and printed."""

    name: str
    captures = False
    """Whether steps can be captured and launched as one (:meth:`decode_graph` and the engine's graphs of speech)."""

    def __init__(self, device: torch.device, precision: Precision) -> None:
        self.device = device
        self.precision = precision

    def describe(self) -> str:
        """One line for people: what computes, where, in which format."""
        compute = str(self.precision.compute).removeprefix("torch.")
        return f"{self.name} backend on {self.device}, {compute}, {torch.get_num_threads()} threads"

    # Parameters

    @abstractmethod
    def matrix(self, values: Tensor) -> tuple[Weight, bool]:
        """Take a matrix ``[out, in]`` into this backend's device and format; whether it still reads ``values``' own
        memory (if not, the caller may let go of it)."""

    def packed_matrix(self, stored: Tensor) -> Weight | None:  # noqa: ARG002  (a backend that takes it, reads it)
        """Take a matrix in packed form (uint8, checked, at a multiple of 64 bytes; docs/formats.md) as it lies. None:
        this backend multiplies with plain numbers, give it those."""
        return None

    def q8_0_matrix(self, blocks: Tensor) -> Weight | None:  # noqa: ARG002  (a backend that takes it, reads it)
        """Take a matrix of Q8_0 blocks (uint8 ``[out, in / 32 * 34]``, where it lies; docs/formats.md) as it is. None:
        this backend multiplies with plain numbers, give it those."""
        return None

    def vector(self, values: Tensor) -> Tensor:
        """Take a norm weight, bias, scale or router, in the residual dtype."""
        return values.to(self.device, self.precision.residual)

    def kernel(self, values: Tensor) -> Tensor:
        """Take the kernel of a convolution, in the compute dtype."""
        return values.to(self.device, self.precision.compute)

    def decode_graph(self, run: Run, rows: int, kv_dtype: torch.dtype) -> DecodeGraph | None:  # noqa: ARG002
        """Steps of ``rows`` sequences, one row each, as one launch of the whole of ``run``, over stores that hold
        ``kv_dtype``. None: this backend runs them operation by operation."""
        return None

    def host_callback(self, work: Callable[[], object]) -> None:
        """Run ``work`` on the host, between what this backend was asked before and what it is asked next; again each
        time that a captured step is launched."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()
        work()

    def run_layers(
        self, layers: Layers, x: Tensor, positions: Tensor, segments: Sequence[Segment], observe: Observer | None
    ) -> Tensor:
        """``layers(x, positions, segments, observe)``: all layers of a stack, which a backend may launch as one."""
        return layers(x, positions, segments, observe)

    def single_threaded_torch(self) -> AbstractContextManager[None]:
        """Around work of many small operations: a backend with threads of its own sees to it that no others are awake
        beside them meanwhile."""
        return nullcontext()

    # Primitive operations

    @abstractmethod
    def embedding(self, weight: Weight, ids: Tensor) -> Tensor:
        """Rows ``ids`` (int64 ``[rows]``) of the table, in the residual dtype: ``[rows, in_features]``."""

    @abstractmethod
    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
        """``x [rows, in] @ weight.T + bias``: ``[rows, out]`` in the compute dtype, summed in float32 or better."""

    @abstractmethod
    def rms_norm(self, x: Tensor, norm: Norm) -> Tensor:
        """``x / sqrt(mean(x^2) + eps) * weight`` over the last axis (Zhang and Sennrich 2019), computed in the residual
        dtype and rounded once to the compute dtype."""

    @abstractmethod
    def rotary_table(self, positions: Tensor, inverse_frequencies: Tensor, scale: float = 1.0) -> RotaryTable:
        """Cosines and sines ``[rows, frequencies]`` of ``position * frequency``, times ``scale``, in the rotary dtype;
        ``positions`` ``[rows, 1]``, or ``[rows, frequencies]`` where each frequency has its own."""

    @abstractmethod
    def rotate(self, x: Tensor, table: RotaryTable, norm: Norm | None) -> Tensor:
        """RMSNorm of each head if given, then the half-split rotation of pairs (i, i + head_dim/2) (Su et al. 2021):
        ``x [rows, heads, head_dim]``, rounded once to the compute dtype."""

    @abstractmethod
    def attention(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        layer: int,
        segments: Sequence[Segment],
        window: int | None,
    ) -> Tensor:
        """Store the rows' keys and values, then causal grouped-query attention of every row over its own sequence.

        ``query [rows, heads, head_dim]``, ``keys`` and ``values`` ``[rows, kv_heads, head_dim]``; scale
        1/sqrt(head_dim). Returns ``[rows, heads * head_dim]`` in the compute dtype."""

    @abstractmethod
    def gated_silu(self, gate: Tensor, up: Tensor) -> Tensor:
        """``silu(gate) * up`` (Shazeer 2020), computed in float32 or better and rounded once."""

    @abstractmethod
    def route(self, x: Tensor, router: Tensor, top_k: int, *, normalise: bool) -> tuple[Tensor, Tensor]:
        """Softmax over all experts of ``x @ router.T`` in the residual dtype, the ``top_k`` largest of each row,
        divided by their sum if ``normalise`` (spec section 5). Weights and int64 ids, both ``[rows, top_k]``."""

    @abstractmethod
    def layer_norm(self, x: Tensor, norm: LayerNorm) -> Tensor:
        """``(x - mean) / sqrt(variance + eps) * weight + bias`` over the last axis (Ba et al. 2016), computed in the
        residual dtype and rounded once to the compute dtype."""

    @abstractmethod
    def gelu(self, x: Tensor, *, tanh: bool = False) -> Tensor:
        """``x * Phi(x)`` (Hendrycks and Gimpel 2016), exact or by its ``tanh`` approximation, computed in float32 or
        better and rounded once to the compute dtype."""

    @abstractmethod
    def block_attention(self, query: Tensor, keys: Tensor, values: Tensor, lengths: Sequence[int]) -> Tensor:
        """Attention inside consecutive blocks of ``lengths`` rows, each row seeing its whole block.

        ``query``, ``keys``, ``values`` ``[rows, heads, head_dim]``; scale 1/sqrt(head_dim). Returns
        ``[rows, heads * head_dim]`` in the compute dtype."""

    @abstractmethod
    def conv2d(self, x: Tensor, kernel: Tensor, bias: Tensor, *, stride: int, padding: int) -> Tensor:
        """Cross-correlation ``[batch, in, height, width] -> [batch, out, height', width']`` with ``kernel``
        ``[out, in, kh, kw]``, in the compute dtype, summed in float32 or better. ``bias [out]`` is in the
        residual dtype."""

    @abstractmethod
    def snake_beta(self, x: Tensor, frequency: Tensor, amplitude: Tensor) -> Tensor:
        """``x + amplitude * sin(frequency * x)^2`` (Liu et al. 2020, with an amplitude of its own as in Lee et al.
        2023), computed in the residual dtype and rounded once to the compute dtype: ``x [rows, channels]``, the other
        two ``[channels]`` in the residual dtype."""

    def conv1d(
        self, streams: Sequence[Tensor], weight: Weight, bias: Tensor, *, taps: int, dilation: int
    ) -> list[Tensor]:
        """Convolution of each stream along its rows: output i is ``weight [out, taps * in]`` times rows i,
        i + dilation, … of ``x [n + (taps - 1) * dilation, in]``, one below the other, ``+ bias``. Returns ``[n, out]``
        of each in the compute dtype, summed in float32 or better; what else is convolved makes no difference to it.
        Defined by :meth:`linear`, so that it takes weights of any format."""
        return [self._convolve(x.contiguous(), weight, bias, taps, dilation) for x in streams]

    def _convolve(self, x: Tensor, weight: Weight, bias: Tensor, taps: int, dilation: int) -> Tensor:
        rows, width = len(x) - (taps - 1) * dilation, x.shape[1]
        windows = x.as_strided((rows, taps, width), (width, dilation * width, 1))
        # A few windows at a time, which stay in the caches: all of them are many times the rows they overlap in.
        at_once = max(_MIN_WINDOWS, _WINDOW_ELEMENTS // (taps * width)) if taps > 1 else max(rows, 1)
        parts = [self.linear(part.reshape(-1, taps * width), weight, bias) for part in torch.split(windows, at_once)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def residual_unit(
        self, x: Tensor, lengths: Sequence[int], unit: ResidualUnit, kept: Sequence[ConvContext]
    ) -> Tensor:
        """See ResidualUnit: rows ``[rows, channels]`` in the residual dtype, changed in place: ``lengths[i]`` of stream
        i, one stream below the other, which do not depend on each other."""
        streams = torch.split(x, list(lengths))
        joined = [
            store.with_context(unit, self.snake_beta(rows, *unit.act1), unit.context, padded=True)
            for store, rows in zip(kept, streams, strict=True)
        ]
        inner = self._convolved(joined, unit.conv1, unit.taps, unit.dilation)
        outer = self._convolved([self.snake_beta(rows, *unit.act2) for rows in inner], unit.conv2, 1, 1)
        for rows, added in zip(streams, outer, strict=True):
            rows.add_(added)
        return x

    def _convolved(self, streams: Sequence[Tensor], conv: Projection, taps: int, dilation: int) -> list[Tensor]:
        assert conv.bias is not None, "a vocoder's convolutions have biases"
        return self.conv1d(streams, conv.weight, conv.bias, taps=taps, dilation=dilation)

    def step_parts(self, lengths: Sequence[int]) -> list[slice]:
        """Which consecutive sequences, of ``lengths`` rows, to make one step of where each must get the numbers that it
        gets alone: one by one, unless a backend's products do not depend on other rows (docs/numerics.md)."""
        return [slice(index, index + 1) for index in range(len(lengths))]

    def begin_step(self, table: RotaryTable, segments: Sequence[Segment]) -> Step:
        """What the layers of one step share."""
        return Step(*table, segments)

    def head(self, x: Tensor, norm: Norm, weight: Weight) -> Tensor:
        """Logits ``norm(x) @ weight.T`` of residual rows: ``[rows, out]`` in the compute dtype or float32."""
        return self.linear(self.rms_norm(x, norm), weight)

    # Residual blocks, defined by the primitives: ``[rows, hidden]`` in the residual dtype -> the same. The result may
    # be ``x`` itself, changed in place.

    def attention_block(self, x: Tensor, block: AttentionBlock, layer: int, step: Step) -> Tensor:
        """See AttentionBlock. The rows' keys and values are stored as layer ``layer`` of their segments' stores."""
        normed = self.rms_norm(x, block.norm)
        query, key, value = (
            self._project(normed, projection).view(len(x), -1, block.head_dim)
            for projection in (block.q_proj, block.k_proj, block.v_proj)
        )
        table = step.cos, step.sin
        query = self.rotate(query, table, block.q_norm)
        key = self.rotate(key, table, block.k_norm)
        attended = self.attention(query, key, value, layer=layer, segments=step.segments, window=block.window)
        return _add_scaled(x, self._project(attended, block.o_proj), block.scale)

    def encoder_block(
        self, x: Tensor, block: EncoderBlock, lengths: Sequence[int], rotary: RotaryTable | None
    ) -> Tensor:
        """See EncoderBlock. Rows attend to their own run of ``lengths`` rows; ``rotary`` turns queries and keys."""
        normed = self.layer_norm(x, block.norm1)
        projected = [self._project(normed, projection) for projection in block.qkv]
        parts = projected if len(projected) == 3 else projected[0].chunk(3, dim=-1)
        query, key, value = (part.reshape(len(part), block.heads, -1) for part in parts)
        if rotary is not None:
            query, key = (self.rotate(part, rotary, None) for part in (query, key))
        x = x + self._project(self.block_attention(query, key, value, lengths), block.out)
        inner = self._project(self.layer_norm(x, block.norm2), block.fc1)
        return x + self._project(self.gelu(inner, tanh=block.tanh), block.fc2)

    def swiglu_block(self, x: Tensor, block: SwiGLUBlock) -> Tensor:
        """See SwiGLUBlock."""
        return _add_scaled(x, self.swiglu(self.rms_norm(x, block.norm), block.mlp), block.scale)

    def mixture_block(self, x: Tensor, block: MixtureBlock) -> Tensor:
        """See MixtureBlock. Rows are gathered by expert, so that an expert no row chose is never run or read."""
        normed = self.rms_norm(x, block.norm)
        weights, ids = self.route(normed, block.router, block.top_k, normalise=block.normalise)
        out = x.clone() if block.shared is None else x + self.shared_expert(normed, block.shared)
        for expert in torch.unique(ids).tolist():
            rows, slot = torch.where(ids == expert)
            part = self.swiglu(normed[rows], block.experts[expert])
            out.index_add_(0, rows, part.to(out.dtype) * weights[rows, slot, None])
        return out

    def shared_expert(self, normed: Tensor, shared: SharedExpert) -> Tensor:
        """See SharedExpert: rows ``[rows, hidden]`` in the compute dtype -> the residual dtype."""
        gate = (normed.to(shared.gate.dtype) @ shared.gate.T).sigmoid()
        return self.swiglu(normed, shared.mlp).to(gate.dtype) * gate

    # Stacks of blocks, which a backend overrides where one call is faster than many.

    def decoder_layers(self, x: Tensor, layers: DecoderLayers, step: Step) -> Tensor:
        """Residual rows ``[rows, hidden]`` (may be changed in place) through all ``layers``."""
        for index in range(len(layers.blocks)):
            x = self.decoder_layer(x, layers, index, step)
        return x

    def decoder_layer(self, x: Tensor, layers: DecoderLayers, index: int, step: Step) -> Tensor:
        """The same through layer ``index`` alone."""
        attention, feed_forward = layers.blocks[index]
        x = self.attention_block(x, attention, index, step)
        if isinstance(feed_forward, MixtureBlock):
            return self.mixture_block(x, feed_forward)
        return self.swiglu_block(x, feed_forward)

    def predict_codes(
        self,
        x: Tensor,
        passes: CodePredictorSteps,
        table: RotaryTable,
        stores: Sequence[KeyValueStore],
        choose: Sequence[Callable[[Tensor], int]],
        total: Tensor,
    ) -> list[list[int]]:
        """See CodePredictorSteps: of each sequence, as it would be alone, the codes that its own of ``choose`` takes of
        each pass's logits ``[codes]``, in turn.

        ``x [sequences, 2, hidden]``: the rows of the first pass, positions 0 and 1; ``table`` turns position after
        position; ``stores`` are empty. ``total [sequences, hidden]``: the codes' rows of their tables are added to it,
        one by one. All in the residual dtype; ``choose`` asks nothing of the backend."""
        return [
            self._codes_of_one(x[index], passes, table, store, choose[index], total[index : index + 1])
            for index, store in enumerate(stores)
        ]

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

    def swiglu(self, x: Tensor, mlp: SwiGLU) -> Tensor:
        """``down(silu(gate(x)) * up(x))``: ``[rows, hidden] -> [rows, hidden]`` in the compute dtype."""
        return self.linear(self.gated_silu(self.linear(x, mlp.gate_proj), self.linear(x, mlp.up_proj)), mlp.down_proj)

    def _project(self, x: Tensor, projection: Projection) -> Tensor:
        return self.linear(x, projection.weight, projection.bias)


def _add_scaled(x: Tensor, branch: Tensor, scale: Tensor | None) -> Tensor:
    return x + (branch if scale is None else branch * scale)
