"""The cpu backend: native kernels for decoding and prefill.

BF16 and Q8_0 weights are used where they lie in the memory map, or BF16 ones packed to 12 bits (docs/formats.md). What
the kernels do not cover (encoders' operations) runs as the reference defines it.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from lluda.backends.backend import Precision
from lluda.backends.batch import ConvContext, KeyValueStore, Segment
from lluda.backends.blocks import AttentionBlock, EncoderBlock, MixtureBlock, Norm, ResidualUnit, SwiGLUBlock
from lluda.backends.capabilities import BackendRequest
from lluda.backends.components import CodePredictorSteps, ConvNeXtBlock, DecoderLayers, UpsampleBlock, Vocoder
from lluda.backends.cpu.capabilities import CAPABILITIES
from lluda.backends.cpu.native_blocks import NativeBlocks, NativeWeight, biased, native
from lluda.backends.cpu.native_library import (
    BYTE_PRODUCTS,
    CHOOSE,
    DTYPE_BF16,
    DTYPE_F32,
    FORMAT_BF16,
    NativeContext,
    WeightStruct,
    pointer,
    pointers,
    sizes,
)
from lluda.backends.cpu.packing import pack_matrix
from lluda.backends.cpu.stored_weights import stored_weight
from lluda.backends.cpu.weight_memory import WeightMemory
from lluda.backends.executor.decoder import Step
from lluda.backends.executor.executor import TorchExecutor
from lluda.backends.executor.operations import RotaryTable
from lluda.backends.weight import Weight
from lluda.errors import InvalidRequest
from lluda.formats.packed_bf16 import PACKED_BF16
from lluda.formats.stored_tensor import StoredTensor

FEW_ROWS = 16
"""Rows of a product up to which reading the weights is the limit, and torch's product far from it."""
CACHE_ROW_WIDTH = 5
"""Numbers of a ``lluda_cache_row``."""


@dataclass(frozen=True, slots=True)
class NativeStep(Step):
    """Where each row's keys and values of each layer lie: ``lluda_cache_row`` as int64 ``[layers, rows, 5]``."""

    cache_rows: Tensor
    cache_dtype: int


class _Inside(threading.local):
    """Whether the calling thread is inside `CpuBackend.single_threaded_torch`."""

    single_threaded = False


class CpuBackend(TorchExecutor):
    """``packed`` stores matrices in the lossless 12-bit form. ``isa`` forces a kind of kernels (tests do)."""

    name = "cpu"
    CAPABILITIES = CAPABILITIES
    has_kernels = True
    few_rows = FEW_ROWS

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
        refusal = self.capabilities().refusal(self.name, BackendRequest(device, precision.name))
        if refusal is not None:
            raise InvalidRequest(refusal)
        self._native = NativeContext(isa or "auto", torch.get_num_threads())
        self._packed = packed
        self._formats: set[str] = set()
        self._memory = WeightMemory()
        self._blocks = NativeBlocks()
        self._inside = _Inside()
        self.incompressible = 0

    def _description(self) -> str:
        kept = f" ({self.incompressible} incompressible matrices kept BF16)" if self.incompressible else ""
        weights = f"packed BF16{kept}" if self._packed or "PACKED_BF16" in self._formats else "BF16"
        if "Q8_0" in self._formats:
            by = BYTE_PRODUCTS.get(self._native.isa)
            rounded = f"{by}, rows rounded" if by else "rows rounded"
            weights += f" and Q8_0 ({rounded})" if self._q8_0_rows else " and Q8_0 (exact)"
        return f"cpu backend ({self._native.isa} kernels), {weights} weights, {self._native.threads} threads"

    # Parameters

    def _take_as_stored(self, stored: StoredTensor) -> tuple[Weight, bool] | None:
        weight = stored_weight(stored, self._native, q8_0_rows=self._q8_0_rows)
        if weight is None:
            return None
        self._formats.add(weight.format)
        return weight, True

    def _take_values(self, values: Tensor) -> tuple[Weight, bool]:
        taken = values.to(torch.bfloat16).contiguous()
        if self._packed:
            packed = pack_matrix(taken, self._memory, self._native)
            if packed is not None:
                weight, _ = self.take(StoredTensor(PACKED_BF16, tuple(taken.shape), packed), "matrix")
                return weight, False
            self.incompressible += 1
        struct = WeightStruct(FORMAT_BF16, 0, *taken.shape, taken.data_ptr())
        return NativeWeight(struct, taken, "BF16"), taken is values

    @contextmanager
    def single_threaded_torch(self) -> Iterator[None]:
        """torch computes on the calling thread alone: its others would spin beside the kernels' for milliseconds after
        each operation that wakes them."""
        if self._inside.single_threaded:
            yield
            return
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        self._inside.single_threaded = True
        try:
            yield
        finally:
            self._inside.single_threaded = False
            torch.set_num_threads(threads)

    # Operations

    def embedding(self, weight: Weight, ids: Tensor) -> Tensor:
        struct = native(weight).struct
        rows = torch.empty(len(ids), weight.in_features)
        self._native.check(
            self._native.embedding(struct, len(ids), ids.contiguous().data_ptr(), rows.data_ptr(), rows.stride(0))
        )
        return rows

    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
        assert x.dtype is torch.bfloat16, f"rows of {x.dtype}; the kernels read BF16"
        if len(x) > FEW_ROWS and not self._inside.single_threaded and (values := self._bf16_values(weight)) is not None:
            # Between torch's operations torch's own product, as good for many rows, or each one's threads would spin
            # while the other's work (journal/08-benchmarks.md).
            return torch.nn.functional.linear(x, values, None if bias is None else bias.to(x.dtype))
        x = x.contiguous()
        y = torch.empty(len(x), weight.out_features, dtype=torch.bfloat16)
        struct = biased(weight, bias)
        self._native.check(
            self._native.linear(struct, len(x), x.data_ptr(), x.stride(0), y.data_ptr(), DTYPE_BF16, y.stride(0))
        )
        return y

    def _bf16_values(self, weight: Weight) -> Tensor | None:
        """The matrix as torch reads it: a packed one unpacked, since a kernel adds up in another order and packed
        weights promise BF16's bits; None for Q8_0."""
        held = native(weight)
        if weight.format == "BF16":
            return held.memory
        if weight.format != PACKED_BF16.name:
            return None
        values = torch.empty(weight.out_features, weight.in_features, dtype=torch.bfloat16)
        self._native.check(self._native.unpack(held.struct, values.data_ptr()))
        return values

    def conv1d(
        self,
        streams: Sequence[Tensor],
        weight: Weight,
        bias: Tensor,
        *,
        taps: int,
        dilation: int,
        dtype: torch.dtype | None = None,
    ) -> list[Tensor]:
        inputs = [x.contiguous() for x in streams]
        assert all(x.dtype is torch.bfloat16 for x in inputs), "the kernels read BF16 rows"
        lengths = [len(x) - (taps - 1) * dilation for x in inputs]
        y = torch.empty(sum(lengths), weight.out_features, dtype=dtype or torch.bfloat16)
        self._native.check(
            self._native.conv1d(
                biased(weight, bias), taps, dilation, len(inputs), sizes(lengths), pointers(inputs),
                weight.in_features // taps, y.data_ptr(), _dtype_of(y), y.stride(0),
            )
        )  # fmt: skip
        return list(torch.split(y, lengths))

    def snake_beta(self, x: Tensor, frequency: Tensor, amplitude: Tensor) -> Tensor:
        x = x.contiguous()
        y = torch.empty(x.shape, dtype=torch.bfloat16)
        self._native.check(
            self._native.snake_beta(
                *x.shape, x.data_ptr(), _dtype_of(x), x.stride(0), frequency.data_ptr(), amplitude.data_ptr(),
                y.data_ptr(), y.stride(0),
            )
        )  # fmt: skip
        return y

    def residual_unit(
        self, x: Tensor, lengths: Sequence[int], unit: ResidualUnit, kept: Sequence[ConvContext]
    ) -> Tensor:
        struct = self._blocks.residual_unit(unit)
        if struct is None:
            return super().residual_unit(x, lengths, unit, kept)
        held = pointers([store.rows(unit, x, unit.context, torch.bfloat16) for store in kept])
        self._native.check(
            self._native.residual_unit_block(struct, len(lengths), sizes(lengths), x.data_ptr(), x.stride(0), held)
        )
        return x

    def upsample_block(
        self, streams: Sequence[Tensor], block: UpsampleBlock, contexts: Sequence[ConvContext]
    ) -> list[Tensor]:
        struct = self._blocks.upsample(block)
        if struct is None:
            return super().upsample_block(streams, block, contexts)
        lengths, x = [len(rows) for rows in streams], _below_each_other(streams)
        begun = [own.has_begun(block) for own in contexts]
        made = [
            max(rows + before - (struct.taps - 1), 0) * struct.stride if rows else 0
            for rows, before in zip(lengths, begun, strict=True)
        ]
        y = torch.empty(sum(made), struct.out)
        kept = [
            own.rows(block, x, 1, torch.bfloat16) if rows else x for own, rows in zip(contexts, lengths, strict=True)
        ]
        kept += [own.rows(unit, y, unit.context, torch.bfloat16) for unit in block.units for own in contexts]
        self._native.check(
            self._native.upsample_block(
                struct, len(lengths), sizes(lengths), x.data_ptr(), x.stride(0), pointers(kept),
                (ctypes.c_int32 * len(begun))(*begun), y.data_ptr(),
            )
        )  # fmt: skip
        return list(torch.split(y, made))

    def convnext(
        self, streams: Sequence[Tensor], block: ConvNeXtBlock, contexts: Sequence[ConvContext]
    ) -> list[Tensor]:
        struct, lengths = self._blocks.convnext(block), [len(rows) for rows in streams]
        x = _below_each_other(streams)
        kept = pointers([own.rows(block.dwconv, x, struct.taps - 1, torch.float32) for own in contexts])
        self._native.check(
            self._native.convnext_block(struct, len(lengths), sizes(lengths), x.data_ptr(), x.stride(0), kept)
        )
        return list(torch.split(x, lengths))

    def samples(self, streams: Sequence[Tensor], vocoder: Vocoder, contexts: Sequence[ConvContext]) -> list[Tensor]:
        struct = self._blocks.mono_convolution(vocoder.last, vocoder.act).struct
        lengths, x = [len(rows) for rows in streams], _below_each_other(streams)
        kept = pointers([own.rows(vocoder.last, x, struct.taps - 1, torch.bfloat16) for own in contexts])
        y = torch.empty(len(x))
        self._native.check(
            self._native.mono_convolution_block(
                struct, len(lengths), sizes(lengths), x.data_ptr(), x.stride(0), kept, y.data_ptr()
            )
        )
        return list(torch.split(y, lengths))

    def step_parts(self, lengths: Sequence[int]) -> list[slice]:
        parts, begin = [], 0
        for end in range(1, len(lengths) + 1):
            if end == len(lengths) or not _alike(lengths[begin : end + 1]):
                parts.append(slice(begin, end))
                begin = end
        return parts

    def head(self, x: Tensor, norm: Norm, weight: Weight) -> Tensor:
        x = x.contiguous()
        logits = torch.empty(len(x), weight.out_features)
        self._native.check(
            self._native.lm_head(
                native(weight).struct, norm.weight.data_ptr(), norm.eps, len(x), x.data_ptr(), x.stride(0),
                logits.data_ptr(), logits.stride(0),
            )
        )  # fmt: skip
        return logits

    # Residual blocks

    def begin_step(self, table: RotaryTable, segments: Sequence[Segment]) -> Step:
        parts, layers, dtype = [], 1, torch.bfloat16
        for segment in segments:
            keys, values = segment.store.reserve(segment.rows)
            layers, dtype = len(keys), keys.dtype
            parts.append(_cache_rows(keys, values, segment.store.length, segment.rows))
        rows = torch.cat(parts, dim=1) if parts else torch.empty(layers, 0, CACHE_ROW_WIDTH, dtype=torch.int64)
        cos, sin = (part.contiguous() for part in table)
        return NativeStep(cos, sin, segments, rows, DTYPE_BF16 if dtype is torch.bfloat16 else DTYPE_F32)

    def attention_block(self, x: Tensor, block: AttentionBlock, layer: int, step: Step) -> Tensor:
        struct = self._blocks.attention(block)
        step = _native_step(step)
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
        struct = self._blocks.encoder(block)
        cos, sin = (None, None) if rotary is None else (part.contiguous() for part in rotary)
        runs = (ctypes.c_int64 * len(lengths))(*lengths)
        self._native.check(
            self._native.encoder_block(
                struct, len(x), x.data_ptr(), x.stride(0), pointer(cos), pointer(sin), runs, len(lengths)
            )
        )
        return x

    def swiglu_block(self, x: Tensor, block: SwiGLUBlock) -> Tensor:
        struct = self._blocks.swiglu(block)
        self._native.check(self._native.mlp_block(struct, len(x), x.data_ptr(), x.stride(0)))
        return x

    def mixture_block(self, x: Tensor, block: MixtureBlock) -> Tensor:
        struct = self._blocks.mixture(block)
        self._native.check(self._native.moe_block(struct, len(x), x.data_ptr(), x.stride(0), None))
        return x

    # Stacks

    def decoder_layers(self, x: Tensor, layers: DecoderLayers, step: Step) -> Tensor:
        if len(x) > FEW_ROWS or layers.group is not None:
            return super().decoder_layers(x, layers, step)
        made = self._blocks.layers(layers)
        step = _native_step(step)
        made.set_cache_dtype(step.cache_dtype)
        self._native.check(
            self._native.decoder_layers(
                made.structs, len(made.structs), len(x), x.data_ptr(), x.stride(0), step.cos.data_ptr(),
                step.sin.data_ptr(), step.cache_rows.data_ptr(),
            )
        )  # fmt: skip
        return x

    def predict_codes(
        self,
        x: Tensor,
        passes: CodePredictorSteps,
        stores: Sequence[KeyValueStore],
        choose: Sequence[Callable[[Tensor], int]],
        total: Tensor,
    ) -> list[list[int]]:
        codes = []
        for begin in range(0, len(stores), FEW_ROWS // 2):  # the first pass has two rows of each sequence
            part = slice(begin, begin + FEW_ROWS // 2)
            codes += self._code_passes(x[part], passes, stores[part], choose[part], total[part])
        return codes

    def _code_passes(
        self,
        x: Tensor,
        passes: CodePredictorSteps,
        stores: Sequence[KeyValueStore],
        choose: Sequence[Callable[[Tensor], int]],
        total: Tensor,
    ) -> list[list[int]]:
        struct, layers = self._blocks.predict_codes(passes), self._blocks.layers(passes.layers)
        frames, places = len(stores), len(passes.heads) + 1
        table = self.code_table(passes)
        step = _native_step(self.begin_step(table, [Segment(0, places, store) for store in stores]))
        layers.set_cache_dtype(step.cache_dtype)
        # All by position, so that the rows of each pass lie side by side.
        rows, cos, sin = x.transpose(0, 1).contiguous(), *(part.repeat_interleave(frames, 0) for part in table)
        by_position = step.cache_rows.view(-1, frames, places, CACHE_ROW_WIDTH).transpose(1, 2).contiguous()
        logits = torch.empty(len(passes.heads), frames, passes.heads[0].out_features)
        codes = torch.zeros(len(passes.heads), frames, dtype=torch.int64)
        raised: list[BaseException] = []

        def chosen(_: int | None, number: int) -> int:
            try:
                codes[number] = torch.tensor([pick(row) for pick, row in zip(choose, logits[number], strict=True)])
            except BaseException as error:  # it cannot pass through the kernels: it is raised again behind them
                raised.append(error)
            return len(raised)

        result = self._native.predict_codes(
            struct, frames, rows.data_ptr(), cos.data_ptr(), sin.data_ptr(), by_position.data_ptr(), CHOOSE(chosen),
            None, logits.data_ptr(), codes.data_ptr(), total.data_ptr(),
        )  # fmt: skip
        if raised:
            raise raised[0]
        self._native.check(result)
        for store in stores:
            store.length += places
        by_sequence: list[list[int]] = codes.T.tolist()
        return by_sequence


def _alike(lengths: Sequence[int]) -> bool:
    """Whether segments are multiplied together as each is alone: sums of few rows are in another order than of many."""
    few = lengths[0] <= FEW_ROWS
    return all((rows <= FEW_ROWS) == few for rows in lengths) and (not few or sum(lengths) <= FEW_ROWS)


def _below_each_other(streams: Sequence[Tensor]) -> Tensor:
    """Rows of all streams in memory that may be changed, in float32."""
    x = streams[0] if len(streams) == 1 else torch.cat(list(streams))
    return x.float().contiguous()


def _dtype_of(x: Tensor) -> int:
    return DTYPE_BF16 if x.dtype is torch.bfloat16 else DTYPE_F32


def _native_step(step: Step) -> NativeStep:
    assert isinstance(step, NativeStep), "the cpu backend was given a step of another backend"
    return step


def _cache_rows(keys: Tensor, values: Tensor, length: int, rows: int) -> Tensor:
    """``lluda_cache_row`` of one sequence's next rows in buffers ``[layers, kv_heads, capacity, head_dim]``."""
    made = torch.empty(len(keys), rows, CACHE_ROW_WIDTH, dtype=torch.int64)
    layer_bytes = torch.arange(len(keys))[:, None] * (keys.stride(0) * keys.itemsize)
    made[..., 0], made[..., 1] = keys.data_ptr() + layer_bytes, values.data_ptr() + layer_bytes
    made[..., 2], made[..., 3], made[..., 4] = keys.stride(1), keys.shape[2], length + torch.arange(rows)
    return made
