"""The cpu backend: native kernels for up to 16 rows (decoding), the reference's operations for more (prefill).

BF16 weights are used where they lie in the memory map, or packed to 12 bits (docs/formats.md). What the kernels do not
cover runs as the reference defines it, on the same weights: more rows than they take, and dtypes other than BF16.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lluda.backends.base import Precision, RotaryTable
from lluda.backends.blocks import AttentionBlock, MixtureBlock, Norm, Projection, Segment, Step, SwiGLUBlock, Weight
from lluda.backends.native_library import (
    DTYPE_BF16,
    DTYPE_F32,
    FORMAT_BF16,
    INCOMPRESSIBLE,
    MAX_ROWS,
    AttentionStruct,
    CacheRowStruct,
    MlpStruct,
    MoeStruct,
    WeightStruct,
    native_library,
    pointer,
)
from lluda.backends.reference import ReferenceBackend
from lluda.errors import InvalidRequest

_ALIGNMENT = 64


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


@dataclass(frozen=True, slots=True)
class NativeStep(Step):
    """A step of few rows: where each row's keys and values of layer 0 lie, and how far layers are apart in bytes."""

    cache_rows: Any
    layer_bytes: list[int]
    first_keys: list[int]
    first_values: list[int]
    cache_dtype: int


@dataclass(slots=True)
class _Blocks:
    """Descriptors made for blocks, kept as long as the backend: by block, since blocks compare by identity."""

    attention: dict[AttentionBlock, AttentionStruct] = field(default_factory=dict)
    swiglu: dict[SwiGLUBlock, MlpStruct] = field(default_factory=dict)
    mixture: dict[MixtureBlock, tuple[MoeStruct, Any]] = field(default_factory=dict)


class CpuBackend(ReferenceBackend):
    """``packed`` stores matrices in the lossless 12-bit form. ``isa`` forces a kind of kernels (tests do)."""

    name = "cpu"

    def __init__(
        self, device: torch.device, precision: Precision, *, packed: bool = False, isa: str | None = None
    ) -> None:
        super().__init__(device, precision)
        if device.type != "cpu" or precision.compute is not torch.bfloat16:
            raise InvalidRequest(
                f"the cpu backend computes in bf16 on the CPU, not in {precision.compute} on {device}; "
                "use --backend reference for that"
            )
        self._native = native_library()
        self._native.check(self._native.select_isa((isa or "auto").encode()))
        self._native.check(self._native.set_threads(torch.get_num_threads()))
        self._packed = packed
        self._blocks = _Blocks()
        self.incompressible = 0
        self._scratch = torch.empty(0, dtype=torch.bfloat16)

    def describe(self) -> str:
        kept = f" ({self.incompressible} incompressible matrices kept BF16)" if self.incompressible else ""
        weights = f"packed BF16{kept}" if self._packed else "BF16"
        return f"cpu backend ({self._native.isa} kernels), {weights} weights, {self._native.threads} threads"

    # Parameters

    def matrix(self, values: Tensor) -> tuple[Weight, bool]:
        taken = values.to(torch.bfloat16).contiguous()
        if self._packed:
            packed = self._pack(taken)
            if packed is not None:
                return packed, False
            self.incompressible += 1
        struct = WeightStruct(FORMAT_BF16, 0, *taken.shape, taken.data_ptr())
        return NativeWeight(struct, taken, "BF16"), taken is values

    def _pack(self, values: Tensor) -> NativeWeight | None:
        size = ctypes.c_int64()
        code = self._native.pack_size(values.data_ptr(), *values.shape, ctypes.byref(size))
        if code == INCOMPRESSIBLE:
            return None
        self._native.check(code)
        buffer = _aligned(size.value)
        self._native.check(self._native.pack(values.data_ptr(), *values.shape, buffer.data_ptr(), size.value))
        struct = WeightStruct()
        self._native.check(self._native.packed_view(buffer.data_ptr(), size.value, ctypes.byref(struct)))
        return NativeWeight(struct, buffer, "PACKED_BF16")

    # Primitive operations

    def embedding(self, weight: Weight, ids: Tensor) -> Tensor:
        struct = _native(weight).struct
        rows = torch.empty(len(ids), weight.in_features)
        self._native.check(
            self._native.embedding(struct, len(ids), ids.contiguous().data_ptr(), rows.data_ptr(), rows.stride(0))
        )
        return rows

    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
        if len(x) > MAX_ROWS:
            y = torch.nn.functional.linear(x, self._dense_values(_native(weight)))
        else:
            x = x.contiguous()
            y = torch.empty(len(x), weight.out_features, dtype=torch.bfloat16)
            self._native.check(
                self._native.linear(
                    _native(weight).struct, len(x), x.data_ptr(), x.stride(0), y.data_ptr(), DTYPE_BF16, y.stride(0)
                )
            )
        return y if bias is None else (y + bias).to(y.dtype)

    def head(self, x: Tensor, norm: Norm, weight: Weight) -> Tensor:
        if len(x) > MAX_ROWS:
            return super().head(x, norm, weight)
        x = x.contiguous()
        logits = torch.empty(len(x), weight.out_features)
        self._native.check(
            self._native.lm_head(
                _native(weight).struct, norm.weight.data_ptr(), norm.eps, len(x), x.data_ptr(), x.stride(0),
                logits.data_ptr(), logits.stride(0),
            )
        )  # fmt: skip
        return logits

    # Residual blocks of few rows

    def begin_step(self, table: RotaryTable, segments: Sequence[Segment]) -> Step:
        rows = sum(segment.rows for segment in segments)
        if rows > MAX_ROWS:
            return Step(*table, segments)
        structs = (CacheRowStruct * rows)()
        first_keys, first_values, layer_bytes = [], [], []
        dtype = torch.bfloat16
        for segment in segments:
            keys, values = segment.store.room(segment.rows)
            dtype = keys.dtype
            for row in range(segment.rows):
                struct = structs[segment.start + row]
                struct.head_stride, struct.position = keys.stride(1), segment.store.length + row
            first_keys += [keys.data_ptr()] * segment.rows
            first_values += [values.data_ptr()] * segment.rows
            layer_bytes += [keys.stride(0) * keys.itemsize] * segment.rows
        cache_dtype = DTYPE_BF16 if dtype is torch.bfloat16 else DTYPE_F32
        cos, sin = (part.contiguous() for part in table)
        return NativeStep(cos, sin, segments, structs, layer_bytes, first_keys, first_values, cache_dtype)

    def attention_block(self, x: Tensor, block: AttentionBlock, layer: int, step: Step) -> Tensor:
        if not isinstance(step, NativeStep):
            return super().attention_block(x, block, layer, step)
        struct = self._blocks.attention.get(block)
        if struct is None:
            struct = self._blocks.attention[block] = _attention_struct(block, x.shape[1])
        struct.cache_dtype = step.cache_dtype
        for row, cache_row in enumerate(step.cache_rows):
            offset = layer * step.layer_bytes[row]
            cache_row.keys, cache_row.values = step.first_keys[row] + offset, step.first_values[row] + offset
        self._native.check(
            self._native.attention_block(
                struct, len(x), x.data_ptr(), x.stride(0), step.cos.data_ptr(), step.sin.data_ptr(), step.cache_rows
            )
        )
        return x

    def swiglu_block(self, x: Tensor, block: SwiGLUBlock) -> Tensor:
        if len(x) > MAX_ROWS:
            return super().swiglu_block(x, block)
        struct = self._blocks.swiglu.get(block)
        if struct is None:
            struct = self._blocks.swiglu[block] = _mlp_struct(block, x.shape[1])
        self._native.check(self._native.mlp_block(struct, len(x), x.data_ptr(), x.stride(0)))
        return x

    def mixture_block(self, x: Tensor, block: MixtureBlock) -> Tensor:
        if len(x) > MAX_ROWS:
            return super().mixture_block(x, block)
        made = self._blocks.mixture.get(block)
        if made is None:
            made = self._blocks.mixture[block] = _moe_struct(block, x.shape[1])
        self._native.check(self._native.moe_block(made[0], len(x), x.data_ptr(), x.stride(0), None))
        return x

    def _dense_values(self, weight: NativeWeight) -> Tensor:
        """The matrix as a BF16 tensor; a packed one is unpacked into scratch memory that the next call reuses."""
        shape = (weight.out_features, weight.in_features)
        if weight.format == "BF16":
            return weight.memory
        count = shape[0] * shape[1]
        if self._scratch.numel() < count:
            self._scratch = torch.empty(count, dtype=torch.bfloat16)
        values = self._scratch[:count].view(shape)
        self._native.check(self._native.unpack(weight.struct, values.data_ptr()))
        return values


def _native(weight: Weight) -> NativeWeight:
    assert isinstance(weight, NativeWeight), f"the cpu backend was given a {weight.format} weight of another backend"
    return weight


def _aligned(nbytes: int) -> Tensor:
    """uint8 memory that begins at a multiple of 64 bytes."""
    room = torch.empty(nbytes + _ALIGNMENT, dtype=torch.uint8)
    start = -room.data_ptr() % _ALIGNMENT
    return room[start : start + nbytes]


def _with_bias(projection: Projection) -> Any:
    source = _native(projection.weight).struct
    struct = WeightStruct.from_buffer_copy(source)
    struct.bias = pointer(projection.bias)
    return ctypes.pointer(struct)


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
        norm_eps=block.norm.eps,
        qk_norm_eps=head_norm.eps if head_norm else 0.0,
    )


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
    return struct, (gate, up, down)
