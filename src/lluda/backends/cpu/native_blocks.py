"""Descriptors of blocks as the native kernels read them (native/include/lluda_native.h), made once for each block."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from lluda.backends.blocks import (
    AttentionBlock,
    EncoderBlock,
    MixtureBlock,
    Projection,
    ResidualUnit,
    SwiGLU,
    SwiGLUBlock,
)
from lluda.backends.components import (
    CodePredictorSteps,
    ConvNeXtBlock,
    DecoderLayers,
    MonoConvolution,
    UpsampleBlock,
)
from lluda.backends.cpu.native_library import (
    AttentionStruct,
    CodePredictorStruct,
    ConvNeXtStruct,
    EncoderStruct,
    LayerStruct,
    MlpStruct,
    MoeStruct,
    MonoConvolutionStruct,
    ResidualUnitStruct,
    UpsampleStruct,
    WeightStruct,
    pointer,
)
from lluda.backends.weight import Weight

MOST_TAPS = 2
"""Of a transposed convolution inside ``lluda_upsample``."""

_Block = TypeVar("_Block")
_Made = TypeVar("_Made")


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
class NativeLayers:
    """``lluda_layer`` of each layer, and the attentions among them, which are given each step's kind of cache."""

    structs: Any
    attentions: tuple[AttentionStruct, ...]

    def set_cache_dtype(self, dtype: int) -> None:
        """Which kind of cache the next call is given."""
        for attention in self.attentions:
            attention.cache_dtype = dtype


@dataclass(frozen=True, slots=True)
class NativeMonoConvolution:
    """A descriptor, and the taps in the order in which it points at them."""

    struct: MonoConvolutionStruct
    taps: Tensor


class NativeBlocks:
    """Descriptors, which live as long as the backend: by block, since blocks compare by identity."""

    def __init__(self) -> None:
        self._descriptors: dict[object, Any] = {}

    def attention(self, block: AttentionBlock) -> AttentionStruct:
        """``lluda_attention``, but for the kind of cache."""
        return self._once(block, _attention_struct)

    def encoder(self, block: EncoderBlock) -> EncoderStruct:
        """``lluda_encoder``."""
        return self._once(block, _encoder_struct)

    def residual_unit(self, unit: ResidualUnit) -> ResidualUnitStruct | None:
        """``lluda_residual_unit``; None for what that kernel does not take: a first convolution in Q8_0, or an odd
        number of channels."""
        if unit.conv1.weight.format == "Q8_0" or unit.conv2.weight.in_features % 2:
            return None
        return self._once(unit, _residual_unit_struct)

    def upsample(self, block: UpsampleBlock) -> UpsampleStruct | None:
        """``lluda_upsample``; None for what that kernel does not take: units it has no kernel for, or more taps."""
        units = [self.residual_unit(unit) for unit in block.units]
        if block.upsample.taps > MOST_TAPS or any(unit is None for unit in units):
            return None
        return self._once(block, lambda made: _upsample_struct(made, units))

    def convnext(self, block: ConvNeXtBlock) -> ConvNeXtStruct:
        """``lluda_convnext``."""
        return self._once(block, _convnext_struct)

    def mono_convolution(self, conv: MonoConvolution, act: tuple[Tensor, Tensor]) -> NativeMonoConvolution:
        """``lluda_mono_convolution``."""
        return self._once(conv, lambda made: _mono_convolution(made, act))

    def swiglu(self, block: SwiGLUBlock) -> MlpStruct:
        """``lluda_mlp``."""
        return self._once(block, _mlp_struct)

    def mixture(self, block: MixtureBlock) -> MoeStruct:
        """``lluda_moe``."""
        return self._once(block, _moe_struct)

    def layers(self, layers: DecoderLayers) -> NativeLayers:
        """``lluda_layer`` of each."""
        return self._once(layers, self._layer_structs)

    def predict_codes(self, passes: CodePredictorSteps) -> CodePredictorStruct:
        """``lluda_code_predictor``."""
        return self._once(passes, lambda made: _predictor_struct(made, self.layers(made.layers)))

    def _once(self, block: _Block, make: Callable[[_Block], _Made]) -> _Made:
        if block not in self._descriptors:
            self._descriptors[block] = make(block)
        made: _Made = self._descriptors[block]
        return made

    def _layer_structs(self, layers: DecoderLayers) -> NativeLayers:
        structs = (LayerStruct * len(layers.blocks))()
        attentions = []
        for struct, (attention, feed_forward) in zip(structs, layers.blocks, strict=True):
            attends = self.attention(attention)
            attentions.append(attends)
            struct.attention = ctypes.pointer(attends)
            if isinstance(feed_forward, MixtureBlock):
                struct.moe = ctypes.pointer(self.mixture(feed_forward))
            else:
                struct.mlp = ctypes.pointer(self.swiglu(feed_forward))
        return NativeLayers(structs, tuple(attentions))


def biased(weight: Weight, bias: Tensor | None) -> WeightStruct:
    """``lluda_weight`` with a bias, which must outlive it."""
    source = native(weight).struct
    if bias is None:
        return source
    struct = WeightStruct.from_buffer_copy(source)
    struct.bias = bias.data_ptr()
    return struct


def native(weight: Weight) -> NativeWeight:
    """A weight that is this backend's own."""
    assert isinstance(weight, NativeWeight), f"the cpu backend was given a {weight.format} weight of another backend"
    return weight


def _matrices(mlp: SwiGLU) -> tuple[Weight, Weight, Weight]:
    return mlp.gate_proj, mlp.up_proj, mlp.down_proj


def _with_bias(projection: Projection) -> Any:
    return ctypes.pointer(biased(projection.weight, projection.bias))


def _array(weights: Iterable[Weight]) -> Any:
    structs = [native(weight).struct for weight in weights]
    return (WeightStruct * len(structs))(*structs)


def _attention_struct(block: AttentionBlock) -> AttentionStruct:
    head_norm = block.q_norm or block.k_norm
    return AttentionStruct(
        hidden=block.q_proj.weight.in_features,
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


def _encoder_struct(block: EncoderBlock) -> EncoderStruct:
    qkv = (WeightStruct * len(block.qkv))(*(biased(part.weight, part.bias) for part in block.qkv))
    return EncoderStruct(
        hidden=block.fc1.weight.in_features,
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


def _residual_unit_struct(unit: ResidualUnit) -> ResidualUnitStruct:
    return ResidualUnitStruct(
        unit.conv2.weight.in_features,
        unit.taps,
        unit.dilation,
        *(part.data_ptr() for part in (*unit.act1, *unit.act2)),
        _with_bias(unit.conv1),
        _with_bias(unit.conv2),
    )


def _upsample_struct(block: UpsampleBlock, units: Sequence[Any]) -> UpsampleStruct:
    conv = block.upsample
    return UpsampleStruct(
        channels=conv.projection.weight.in_features // conv.taps,
        out=conv.projection.weight.out_features // conv.stride,
        taps=conv.taps,
        stride=conv.stride,
        frequency=block.act[0].data_ptr(),
        amplitude=block.act[1].data_ptr(),
        conv=_with_bias(conv.projection),
        units=(ResidualUnitStruct * len(units))(*units),
        unit_count=len(units),
    )


def _convnext_struct(block: ConvNeXtBlock) -> ConvNeXtStruct:
    taps, channels = block.dwconv.weight.shape
    return ConvNeXtStruct(
        channels=channels,
        inner=block.pwconv1.weight.out_features,
        taps=taps,
        dwconv=block.dwconv.weight.data_ptr(),
        dwconv_bias=block.dwconv.bias.data_ptr(),
        norm=block.norm.weight.data_ptr(),
        norm_bias=block.norm.bias.data_ptr(),
        gamma=block.gamma.data_ptr(),
        pwconv1=_with_bias(block.pwconv1),
        pwconv2=_with_bias(block.pwconv2),
        norm_eps=block.norm.eps,
    )


def _mono_convolution(conv: MonoConvolution, act: tuple[Tensor, Tensor]) -> NativeMonoConvolution:
    taps = conv.weight.T.contiguous()
    frequency, amplitude = (part.data_ptr() for part in act)
    struct = MonoConvolutionStruct(
        taps.shape[1], taps.shape[0], frequency, amplitude, taps.data_ptr(), conv.bias.data_ptr()
    )
    return NativeMonoConvolution(struct, taps)


def _mlp_struct(block: SwiGLUBlock) -> MlpStruct:
    gate, up, down = (ctypes.pointer(native(weight).struct) for weight in _matrices(block.mlp))
    return MlpStruct(
        hidden=block.mlp.gate_proj.in_features,
        intermediate=block.mlp.gate_proj.out_features,
        norm=block.norm.weight.data_ptr(),
        gate=gate,
        up=up,
        down=down,
        output_scale=pointer(block.scale),
        norm_eps=block.norm.eps,
    )


def _moe_struct(block: MixtureBlock) -> MoeStruct:
    gate, up, down = (_array(weights) for weights in zip(*map(_matrices, block.experts), strict=True))
    struct = MoeStruct(
        hidden=block.experts[0].gate_proj.in_features,
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
            ctypes.pointer(native(weight).struct) for weight in _matrices(mlp)
        )
        struct.shared_expert_gate = block.shared.gate.data_ptr()
    return struct


def _predictor_struct(passes: CodePredictorSteps, layers: NativeLayers) -> CodePredictorStruct:
    return CodePredictorStruct(
        layer_count=len(layers.attentions),
        passes=len(passes.heads),
        layers=layers.structs,
        norm=passes.norm.weight.data_ptr(),
        heads=_array(passes.heads),
        embeddings=_array(passes.embeddings),
        norm_eps=passes.norm.eps,
    )
