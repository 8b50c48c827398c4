"""The cpu backend: native kernels for decoding and prefill.

BF16 weights are used where they lie in the memory map, or packed to 12 bits (docs/formats.md). What the kernels do not
cover (encoders' operations) runs as the reference defines it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lluda.backends.base import Precision, RotaryTable
from lluda.backends.blocks import (
    AttentionBlock,
    EncoderBlock,
    MixtureBlock,
    Norm,
    Projection,
    Segment,
    Step,
    SwiGLUBlock,
    Weight,
)
from lluda.backends.native_library import (
    DTYPE_BF16,
    DTYPE_F32,
    FORMAT_BF16,
    AttentionStruct,
    EncoderStruct,
    MlpStruct,
    MoeStruct,
    WeightStruct,
    native_library,
    pointer,
)
from lluda.backends.packing import pack_matrix, packed_view, share_torch_threads
from lluda.backends.q8_0 import Q8Weight
from lluda.backends.reference import ReferenceBackend
from lluda.backends.weight_memory import WeightMemory
from lluda.errors import InvalidRequest

FEW_ROWS = 16
"""Rows of a product up to which reading the weights is the limit, and torch's product far from it."""


@dataclass(frozen=True, slots=True, eq=False)
class NativeWeight:
    """A matrix the kernels read: its descriptor, and the memory that the descriptor points into."""

    struct: WeightStruct
    memory: Tensor
    format: str

    @property
    def out_features(self) -> int:
        """Rows: width of the product."""
        return int(self.struct.out_features)

    @property
    def in_features(self) -> int:
        """Columns: width of the rows it multiplies."""
        return int(self.struct.in_features)

    @property
    def nbytes(self) -> int:
        """Bytes that one product reads."""
        return self.memory.nbytes


@dataclass(frozen=True, slots=True)
class NativeStep(Step):
    """Where each row's keys and values of each layer lie: ``lluda_cache_row`` as int64 ``[layers, rows, 4]``."""

    cache_rows: Tensor
    cache_dtype: int


@dataclass(slots=True)
class _Blocks:
    """Descriptors made for blocks, kept as long as the backend: by block, since blocks compare by identity."""

    attention: dict[AttentionBlock, AttentionStruct] = field(default_factory=dict)
    encoder: dict[EncoderBlock, tuple[EncoderStruct, Any]] = field(default_factory=dict)
    swiglu: dict[SwiGLUBlock, MlpStruct] = field(default_factory=dict)
    mixture: dict[MixtureBlock, tuple[MoeStruct, Any]] = field(default_factory=dict)


class CpuBackend(ReferenceBackend):
    """``packed`` stores matrices in the lossless 12-bit form. ``isa`` forces a kind of kernels (tests do)."""

    name = "cpu"

    def __init__(
        self,
        device: torch.device,
        precision: Precision,
        *,
        packed: bool = False,
        q8_0_rows: bool = False,
        isa: str | None = None,
    ) -> None:
        super().__init__(device, precision, q8_0_rows=q8_0_rows)
        if device.type != "cpu" or precision.compute is not torch.bfloat16:
            raise InvalidRequest(
                f"the cpu backend computes in bf16 on the CPU, not in {precision.compute} on {device}; "
                "use --backend reference for that"
            )
        self._native = native_library()
        self._native.check(self._native.select_isa((isa or "auto").encode()))
        share_torch_threads()
        self._packed = packed
        self._memory = WeightMemory()
        self._blocks = _Blocks()
        self._decodes_q8_0 = False
        self._alone = False
        self.incompressible = 0

    def describe(self) -> str:
        kept = f" ({self.incompressible} incompressible matrices kept BF16)" if self.incompressible else ""
        weights = f"packed BF16{kept}" if self._packed else "BF16"
        rows = ", rows rounded to Q8_0" if self._q8_0_rows else ""
        weights += f" and Q8_0 (decoded for each product{rows})" if self._decodes_q8_0 else ""
        return f"cpu backend ({self._native.isa} kernels), {weights} weights, {self._native.threads} threads"

    # Parameters

    def matrix(self, values: Tensor) -> tuple[Weight, bool]:
        taken = values.to(torch.bfloat16).contiguous()
        if self._packed:
            packed = pack_matrix(taken, self._memory)
            if packed is not None:
                return _packed(packed), False
            self.incompressible += 1
        struct = WeightStruct(FORMAT_BF16, 0, *taken.shape, taken.data_ptr())
        return NativeWeight(struct, taken, "BF16"), taken is values

    def packed_matrix(self, stored: Tensor) -> Weight | None:
        self._packed = True
        return _packed(stored)

    def q8_0_matrix(self, blocks: Tensor) -> Weight | None:
        self._decodes_q8_0 = True
        return super().q8_0_matrix(blocks)

    @contextmanager
    def own_threads(self) -> Iterator[None]:
        """torch computes on the calling thread alone: its others would spin beside the kernels' for milliseconds after
        each operation that wakes them."""
        if self._alone:
            yield
            return
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        self._alone = True
        try:
            yield
        finally:
            self._alone = False
            torch.set_num_threads(threads)

    # Primitive operations

    def embedding(self, weight: Weight, ids: Tensor) -> Tensor:
        if isinstance(weight, Q8Weight):
            return super().embedding(weight, ids)
        struct = _native(weight).struct
        rows = torch.empty(len(ids), weight.in_features)
        self._native.check(
            self._native.embedding(struct, len(ids), ids.contiguous().data_ptr(), rows.data_ptr(), rows.stride(0))
        )
        return rows

    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
        if isinstance(weight, Q8Weight):
            return super().linear(x, weight, bias)
        if len(x) > FEW_ROWS and weight.format == "BF16" and not self._alone:
            # Between torch's operations torch's own product, as good for many rows, or each one's threads would spin
            # while the other's work (journal/08-benchmarks.md).
            return torch.nn.functional.linear(x, _native(weight).memory, None if bias is None else bias.to(x.dtype))
        x = x.contiguous()
        y = torch.empty(len(x), weight.out_features, dtype=torch.bfloat16)
        struct = _biased(weight, bias)
        self._native.check(
            self._native.linear(struct, len(x), x.data_ptr(), x.stride(0), y.data_ptr(), DTYPE_BF16, y.stride(0))
        )
        return y

    def conv1d(self, x: Tensor, weight: Weight, bias: Tensor, *, taps: int, dilation: int) -> Tensor:
        if isinstance(weight, Q8Weight):
            return super().conv1d(x, weight, bias, taps=taps, dilation=dilation)
        x = x.contiguous()
        rows = len(x) - (taps - 1) * dilation
        y = torch.empty(rows, weight.out_features, dtype=torch.bfloat16)
        struct = _biased(weight, bias)
        self._native.check(
            self._native.conv1d(struct, taps, dilation, rows, x.data_ptr(), x.stride(0), y.data_ptr(), y.stride(0))
        )
        return y

    def snake_beta(self, x: Tensor, frequency: Tensor, amplitude: Tensor) -> Tensor:
        x = x.contiguous()
        y = torch.empty(x.shape, dtype=torch.bfloat16)
        dtype = DTYPE_BF16 if x.dtype is torch.bfloat16 else DTYPE_F32
        self._native.check(
            self._native.snake_beta(
                *x.shape, x.data_ptr(), dtype, x.stride(0), frequency.data_ptr(), amplitude.data_ptr(), y.data_ptr(),
                y.stride(0),
            )
        )  # fmt: skip
        return y

    def head(self, x: Tensor, norm: Norm, weight: Weight) -> Tensor:
        if isinstance(weight, Q8Weight):
            return self.linear(self.rms_norm(x, norm), weight).float()
        x = x.contiguous()
        logits = torch.empty(len(x), weight.out_features)
        self._native.check(
            self._native.lm_head(
                _native(weight).struct, norm.weight.data_ptr(), norm.eps, len(x), x.data_ptr(), x.stride(0),
                logits.data_ptr(), logits.stride(0),
            )
        )  # fmt: skip
        return logits

    # Residual blocks

    def begin_step(self, table: RotaryTable, segments: Sequence[Segment]) -> Step:
        parts, layers, dtype = [], 1, torch.bfloat16
        for segment in segments:
            keys, values = segment.store.room(segment.rows)
            layers, dtype = len(keys), keys.dtype
            parts.append(_cache_rows(keys, values, segment.store.length, segment.rows))
        rows = torch.cat(parts, dim=1) if parts else torch.empty(layers, 0, 4, dtype=torch.int64)
        cos, sin = (part.contiguous() for part in table)
        return NativeStep(cos, sin, segments, rows, DTYPE_BF16 if dtype is torch.bfloat16 else DTYPE_F32)

    def attention_block(self, x: Tensor, block: AttentionBlock, layer: int, step: Step) -> Tensor:
        if _has_q8_0(block.q_proj.weight, block.k_proj.weight, block.v_proj.weight, block.o_proj.weight):
            return super().attention_block(x, block, layer, step)
        assert isinstance(step, NativeStep), "the cpu backend was given a step of another backend"
        struct = self._blocks.attention.get(block)
        if struct is None:
            struct = self._blocks.attention[block] = _attention_struct(block, x.shape[1])
        struct.cache_dtype = step.cache_dtype
        cache_rows = step.cache_rows.data_ptr() + layer * step.cache_rows.stride(0) * step.cache_rows.itemsize
        self._native.check(
            self._native.attention_block(
                struct, len(x), x.data_ptr(), x.stride(0), step.cos.data_ptr(), step.sin.data_ptr(), cache_rows
            )
        )
        return x

    def encoder_block(
        self, x: Tensor, block: EncoderBlock, lengths: Sequence[int], rotary: RotaryTable | None
    ) -> Tensor:
        made = self._blocks.encoder.get(block)
        if made is None:
            made = self._blocks.encoder[block] = _encoder_struct(block, x.shape[1])
        cos, sin = (None, None) if rotary is None else (part.contiguous() for part in rotary)
        runs = (ctypes.c_int64 * len(lengths))(*lengths)
        self._native.check(
            self._native.encoder_block(
                made[0], len(x), x.data_ptr(), x.stride(0), pointer(cos), pointer(sin), runs, len(lengths)
            )
        )
        return x

    def swiglu_block(self, x: Tensor, block: SwiGLUBlock) -> Tensor:
        if _has_q8_0(block.mlp.gate_proj, block.mlp.up_proj, block.mlp.down_proj):
            return super().swiglu_block(x, block)
        struct = self._blocks.swiglu.get(block)
        if struct is None:
            struct = self._blocks.swiglu[block] = _mlp_struct(block, x.shape[1])
        self._native.check(self._native.mlp_block(struct, len(x), x.data_ptr(), x.stride(0)))
        return x

    def mixture_block(self, x: Tensor, block: MixtureBlock) -> Tensor:
        every = (*block.experts, *((block.shared.mlp,) if block.shared else ()))
        if any(_has_q8_0(one.gate_proj, one.up_proj, one.down_proj) for one in every):
            return super().mixture_block(x, block)
        made = self._blocks.mixture.get(block)
        if made is None:
            made = self._blocks.mixture[block] = _moe_struct(block, x.shape[1])
        self._native.check(self._native.moe_block(made[0], len(x), x.data_ptr(), x.stride(0), None))
        return x


def _has_q8_0(*weights: Weight) -> bool:
    """Whether a block has a weight that the kernels do not read yet, so that it runs as it is defined."""
    return any(isinstance(weight, Q8Weight) for weight in weights)


def _packed(stored: Tensor) -> NativeWeight:
    return NativeWeight(packed_view(stored), stored, "PACKED_BF16")


def _native(weight: Weight) -> NativeWeight:
    assert isinstance(weight, NativeWeight), f"the cpu backend was given a {weight.format} weight of another backend"
    return weight


def _cache_rows(keys: Tensor, values: Tensor, length: int, rows: int) -> Tensor:
    """``lluda_cache_row`` of one sequence's next rows in buffers ``[layers, kv_heads, capacity, head_dim]``."""
    made = torch.empty(len(keys), rows, 4, dtype=torch.int64)
    layer_bytes = torch.arange(len(keys))[:, None] * (keys.stride(0) * keys.itemsize)
    made[..., 0], made[..., 1] = keys.data_ptr() + layer_bytes, values.data_ptr() + layer_bytes
    made[..., 2], made[..., 3] = keys.stride(1), length + torch.arange(rows)
    return made


def _biased(weight: Weight, bias: Tensor | None) -> WeightStruct:
    source = _native(weight).struct
    if bias is None:
        return source
    struct = WeightStruct.from_buffer_copy(source)
    struct.bias = bias.data_ptr()
    return struct


def _with_bias(projection: Projection) -> Any:
    return ctypes.pointer(_biased(projection.weight, projection.bias))


def _attention_struct(block: AttentionBlock, hidden: int) -> AttentionStruct:
    head_norm = block.q_norm or block.k_norm
    return AttentionStruct(
        hidden=hidden,
        heads=block.q_proj.weight.out_features // block.head_dim,
        kv_heads=block.k_proj.weight.out_features // block.head_dim,
        head_dim=block.head_dim,
        window=block.window or 0,
        norm=block.norm.weight.data_ptr(),
        q_norm=pointer(block.q_norm.weight if block.q_norm else None),
        k_norm=pointer(block.k_norm.weight if block.k_norm else None),
        q=_with_bias(block.q_proj),
        k=_with_bias(block.k_proj),
        v=_with_bias(block.v_proj),
        o=_with_bias(block.o_proj),
        output_scale=pointer(block.scale),
        norm_eps=block.norm.eps,
        qk_norm_eps=head_norm.eps if head_norm else 0.0,
    )


def _encoder_struct(block: EncoderBlock, hidden: int) -> tuple[EncoderStruct, Any]:
    """The descriptor and the array it points to."""
    qkv = (WeightStruct * len(block.qkv))(*(_biased(part.weight, part.bias) for part in block.qkv))
    struct = EncoderStruct(
        hidden=hidden,
        heads=block.heads,
        head_dim=block.out.weight.in_features // block.heads,
        intermediate=block.fc1.weight.out_features,
        norm1=block.norm1.weight.data_ptr(),
        norm1_bias=block.norm1.bias.data_ptr(),
        norm2=block.norm2.weight.data_ptr(),
        norm2_bias=block.norm2.bias.data_ptr(),
        qkv=qkv,
        qkv_count=len(block.qkv),
        out=_with_bias(block.out),
        fc1=_with_bias(block.fc1),
        fc2=_with_bias(block.fc2),
        norm1_eps=block.norm1.eps,
        norm2_eps=block.norm2.eps,
        gelu=int(block.tanh),
    )
    return struct, qkv


def _mlp_struct(block: SwiGLUBlock, hidden: int) -> MlpStruct:
    mlp = block.mlp
    gate, up, down = (ctypes.pointer(_native(w).struct) for w in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
    return MlpStruct(
        hidden=hidden,
        intermediate=mlp.gate_proj.out_features,
        norm=block.norm.weight.data_ptr(),
        gate=gate,
        up=up,
        down=down,
        output_scale=pointer(block.scale),
        norm_eps=block.norm.eps,
    )


def _moe_struct(block: MixtureBlock, hidden: int) -> tuple[MoeStruct, Any]:
    """The descriptor and the arrays it points to."""
    array = WeightStruct * len(block.experts)
    gate, up, down = (
        array(*(_native(getattr(expert, part)).struct for expert in block.experts))
        for part in ("gate_proj", "up_proj", "down_proj")
    )
    struct = MoeStruct(
        hidden=hidden,
        experts=len(block.experts),
        intermediate=block.experts[0].gate_proj.out_features,
        top_k=block.top_k,
        norm=block.norm.weight.data_ptr(),
        router=block.router.data_ptr(),
        gate=gate,
        up=up,
        down=down,
        norm_eps=block.norm.eps,
        normalise=block.normalise,
    )
    if block.shared is not None:
        mlp = block.shared.mlp
        struct.shared_intermediate = mlp.gate_proj.out_features
        struct.shared_gate, struct.shared_up, struct.shared_down = (
            ctypes.pointer(_native(weight).struct) for weight in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
        )
        struct.shared_expert_gate = block.shared.gate.data_ptr()
    return struct, (gate, up, down)
