"""The wgpu backend: decoders as kernels on any GPU, all else as the reference defines it, on the host.

Host tensors outside, device buffers inside: torch knows nothing of the device, so that components on it and on the CPU
go together without copying code. Weights stay where the host reads them (the memory map) and are copied to the device
when a step first needs them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lluda.backends.backend import Precision
from lluda.backends.batch import DeepStack, KeyValueStore, Segment
from lluda.backends.blocks import MixtureBlock, Norm
from lluda.backends.capture import Run
from lluda.backends.components import CodePredictorSteps, DecoderLayers, Observer
from lluda.backends.executor.decoder import Step
from lluda.backends.executor.operations import RotaryTable
from lluda.backends.executor.q8_weight import Q8Weight
from lluda.backends.weight import DenseWeight, Weight
from lluda.backends.wgpu.capabilities import CAPABILITIES
from lluda.backends.wgpu.device import WgpuRuntime
from lluda.backends.wgpu.encoder import WgpuEncoder
from lluda.backends.wgpu.gpu import Gpu, is_out_of_memory
from lluda.backends.wgpu.memory.key_values import KeyValuePool
from lluda.backends.wgpu.memory.matrices import Matrices
from lluda.backends.wgpu.steps.between_layers import BetweenLayers
from lluda.backends.wgpu.steps.choice import SampledChoice
from lluda.backends.wgpu.steps.code_passes import CodePasses
from lluda.backends.wgpu.steps.decode import WgpuDecode
from lluda.backends.wgpu.steps.exchange import next_places
from lluda.backends.wgpu.steps.given_rows import WgpuHead, WgpuMixture, WgpuTable
from lluda.backends.wgpu.steps.product_run import ProductRun
from lluda.backends.wgpu.steps.prompt import PromptBuilder, prompt_sizes
from lluda.backends.wgpu.steps.stack import STACK_ROWS, WgpuStack, run_prompt
from lluda.backends.wgpu.steps.step import StepBuilder
from lluda.backends.wgpu.vocoder import WgpuVocoder
from lluda.backends.wgpu.weight import NoKernel, PackedWeight, plain
from lluda.formats.packed_bf16 import PACKED_BF16
from lluda.formats.plain import plain_format
from lluda.formats.q8_0 import Q8_0
from lluda.formats.stored_tensor import StoredTensor


class WgpuBackend(WgpuEncoder, WgpuVocoder):
    """``packed``: BF16 matrices are packed to 12 bits on their way to the device."""

    name = "wgpu"
    CAPABILITIES = CAPABILITIES
    has_kernels = True

    def __init__(self, gpu: Gpu, precision: Precision, *, packed: bool = False) -> None:
        super().__init__(gpu, precision, packed=packed)
        self.runtime = WgpuRuntime(gpu.adapter.device)
        self._pools: dict[tuple[int, int, int], KeyValuePool] = {}
        self._builder: StepBuilder | None = None
        self._stacks: dict[tuple[type[StepBuilder], DecoderLayers, int, torch.dtype], WgpuStack | None] = {}
        self._heads: dict[tuple[Norm, Weight, int], WgpuHead | None] = {}
        self._mixtures: dict[tuple[type[StepBuilder], MixtureBlock, int], WgpuMixture | None] = {}
        self._shared: dict[tuple[type[StepBuilder], int], StepBuilder] = {}
        self._tables: dict[PackedWeight, WgpuTable | None] = {}
        self._passes: dict[tuple[CodePredictorSteps, int, torch.dtype], CodePasses | None] = {}

    def _description(self) -> str:
        """One line for people."""
        forms = " and ".join(sorted(self._matrices.forms - {"f32"})) or "no"
        text = f"wgpu backend (experimental) on {self._gpu.adapter.describe()}, {forms} matrices there so far"
        text += f", launches recorded by {self._gpu.recorder.name} code"
        missing = f"; no kernels for {', '.join(self._missing)}" if self._missing else ""
        return text + missing

    # Parameters

    def _take_as_stored(self, stored: StoredTensor) -> tuple[Weight, bool] | None:
        if stored.format is PACKED_BF16:
            return PackedWeight(stored), True
        if stored.format is Q8_0:
            weight = Q8Weight.of(stored)
            return weight, stored.is_read_by(weight.blocks)
        return None

    def _take_values(self, values: Tensor) -> tuple[Weight, bool]:
        taken = values.to(self.precision.compute).contiguous()
        return DenseWeight(taken, plain_format(taken.dtype).name), taken is values

    # The device

    def is_out_of_memory(self, error: BaseException) -> bool:
        return is_out_of_memory(error) or super().is_out_of_memory(error)

    def is_lost(self) -> bool:
        return self._gpu.is_lost()

    def synchronize(self) -> None:
        self._gpu.wait()

    # Operations

    def embedding(self, table: Weight, ids: Tensor) -> Tensor:
        if self._builder is not None:
            return self._builder.embed(table)
        look_up = self._table_of(table) if isinstance(table, PackedWeight) else None
        return super().embedding(plain(table), ids) if look_up is None else look_up(ids)

    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
        return super().linear(x, plain(weight), bias)

    def head(self, x: Tensor, norm: Norm, weight: Weight) -> Tensor:
        if self._builder is not None:
            return self._builder.head(x, norm, weight)
        head = self._head_of(norm, weight, len(x)) if 0 < len(x) <= STACK_ROWS[-1] else None
        return super().head(x, norm, weight) if head is None else head(x)

    def run_layers(
        self,
        layers: DecoderLayers,
        x: Tensor,
        positions: Tensor,
        segments: Sequence[Segment],
        observe: Observer | None = None,
        deepstack: DeepStack | None = None,
    ) -> Tensor:
        if self._builder is not None:
            return self._builder.add_layers(layers, x)
        between = BetweenLayers(layers, observe, deepstack)
        out = self._on_device(x, layers, self.rotary_table(positions, layers.rotary), segments, between)
        if out is None:
            return super().run_layers(layers, x, positions, segments, observe, deepstack)
        between.tell()
        return out

    def mixture_block(self, x: Tensor, block: MixtureBlock) -> Tensor:
        if not len(x):
            return x
        few, kind = len(x) <= STACK_ROWS[-1], StepBuilder if len(x) <= STACK_ROWS[-1] else PromptBuilder
        sizes = [next(rows for rows in STACK_ROWS if rows >= len(x))] if few else prompt_sizes(len(x))
        mixtures = {rows: self._mixture_of(kind, block, rows, x.shape[1]) for rows in sizes}
        parts = [
            mixture(part)
            for rows, part in zip(sizes, torch.split(x, sizes[0]), strict=True)
            if (mixture := mixtures[rows]) is not None
        ]
        return torch.cat(parts) if len(parts) == len(sizes) else super().mixture_block(x, block)

    def begin_step(self, table: RotaryTable, segments: Sequence[Segment]) -> Step:
        for pool in self._pools.values():
            for segment in segments:
                pool.wrote(segment.store)
        return super().begin_step(table, segments)

    # Steps

    def decode_graph(
        self,
        run: Run,
        rows: int,
        kv_dtype: torch.dtype,
        *,
        sampled: bool = False,
        capture: bool = True,  # noqa: ARG002
    ) -> WgpuDecode | None:
        """See `ComputeBackend.decode_graph`. None where a kernel is missing, which `describe` says."""
        return self.where_there_are_kernels(lambda: self._decode(run, rows, kv_dtype, sampled=sampled))

    def product_run(self, rows: Tensor, weights: Sequence[Weight]) -> Callable[[], None]:
        """See `ComputeBackend.product_run`."""
        apart = Matrices(self._gpu, packed=self._matrices.packed)  # let go with the run
        run = self.where_there_are_kernels(lambda: ProductRun(self._gpu, apart, rows, weights))
        return super().product_run(rows, weights) if run is None else run

    def decoder_layers(self, x: Tensor, layers: DecoderLayers, step: Step) -> Tensor:
        """Rows of the host, on the device where there are kernels."""
        out = self._on_device(x, layers, (step.cos, step.sin), step.segments, BetweenLayers(layers))
        return super().decoder_layers(x, layers, step) if out is None else out

    def _on_device(
        self,
        x: Tensor,
        layers: DecoderLayers,
        table: RotaryTable,
        segments: Sequence[Segment],
        between: BetweenLayers,
    ) -> Tensor | None:
        """None where a kernel is missing."""
        stores = [segment.store for segment in segments]
        if not stores or layers.group is not None:
            return None
        if len(stores) == len(x) <= STACK_ROWS[-1]:
            rows = next(rows for rows in STACK_ROWS if rows >= len(x))
            stack = self._stack_of(StepBuilder, layers, rows, x.shape[1], stores[0])
            return None if stack is None else stack.run(x, table, next_places(stores), between=between)
        sizes = prompt_sizes(len(x))
        made = {rows: self._stack_of(PromptBuilder, layers, rows, x.shape[1], stores[0]) for rows in sizes}
        stacks = [stack for stack in (made[rows] for rows in sizes) if stack is not None]
        return run_prompt(stacks, x, table, segments, between) if len(stacks) == len(sizes) else None

    def predict_codes(
        self,
        x: Tensor,
        passes: CodePredictorSteps,
        stores: Sequence[KeyValueStore],
        choose: Sequence[Callable[[Tensor], int]],
        total: Tensor,
    ) -> list[list[int]]:
        codes: list[list[int]] = []
        for begin in range(0, len(stores), STACK_ROWS[-1]):
            part = slice(begin, begin + STACK_ROWS[-1])
            run = self._passes_of(passes, x[part], stores[begin])
            arguments = stores[part], choose[part], total[part]
            if run is None:
                codes += super().predict_codes(x[part], passes, *arguments)
            else:
                codes += run(x[part], self.code_table(passes), *arguments)
        return codes

    def _decode(self, run: Run, rows: int, kv_dtype: torch.dtype, *, sampled: bool) -> WgpuDecode:
        started = time.perf_counter()
        _require_bf16(kv_dtype)
        nowhere = torch.empty(rows, dtype=torch.int64, device="meta")
        segments = [Segment(row, 1, _Unwritten()) for row in range(rows)]
        choice = SampledChoice(self._gpu, rows) if sampled else None
        self._builder = builder = self._steps(rows, choice)
        try:
            vocabulary = run(nowhere, nowhere, segments).shape[1]
        finally:
            self._builder = None
        step, logits = builder.finished(), builder.logits(vocabulary)
        seconds = time.perf_counter() - started
        return WgpuDecode(
            self._gpu, step, self.rotary_table, logits, vocabulary, choice=choice, warm_up_seconds=seconds
        )

    def _stack_of(
        self, kind: type[StepBuilder], layers: DecoderLayers, rows: int, hidden: int, store: KeyValueStore
    ) -> WgpuStack | None:
        """Made once for each kind and number of rows; None where a kernel is missing."""
        dtype = store.reserve(1)[0].dtype
        key = kind, layers, rows, dtype
        if key not in self._stacks:
            self._stacks[key] = self.where_there_are_kernels(lambda: self._stack(kind, layers, rows, hidden, dtype))
        return self._stacks[key]

    def _passes_of(self, passes: CodePredictorSteps, x: Tensor, store: KeyValueStore) -> CodePasses | None:
        """The same of the code predictor."""
        rows = next(rows for rows in STACK_ROWS if rows >= len(x))
        dtype = store.reserve(1)[0].dtype
        key = passes, rows, dtype

        def make() -> CodePasses:
            stack = self._stack(StepBuilder, passes.layers, rows, x.shape[-1], dtype)
            return CodePasses(stack, passes, self.embedding)

        if key not in self._passes:
            self._passes[key] = self.where_there_are_kernels(make)
        return self._passes[key]

    def _stack(
        self, kind: type[StepBuilder], layers: DecoderLayers, rows: int, hidden: int, kv_dtype: torch.dtype
    ) -> WgpuStack:
        _require_bf16(kv_dtype)
        builder = kind(self._gpu, self._matrices, self._pool, rows)
        return WgpuStack(self._gpu, builder, layers, rows, hidden)

    def _head_of(self, norm: Norm, weight: Weight, count: int) -> WgpuHead | None:
        """The same of a head."""
        rows = next(rows for rows in STACK_ROWS if rows >= count)
        key = norm, weight, rows
        if key not in self._heads:
            self._heads[key] = self.where_there_are_kernels(
                lambda: WgpuHead(self._gpu, self._steps(rows), norm, weight)
            )
        return self._heads[key]

    def _mixture_of(self, kind: type[StepBuilder], block: MixtureBlock, rows: int, hidden: int) -> WgpuMixture | None:
        """The same of experts whose decoder is elsewhere; those of all layers share what they use up at once."""
        shared, key = (kind, rows), (kind, block, rows)
        if shared not in self._shared:
            self._shared[shared] = kind(self._gpu, self._matrices, self._pool, rows)
        if key not in self._mixtures:
            self._mixtures[key] = self.where_there_are_kernels(
                lambda: WgpuMixture(self._gpu, self._shared[shared], block, hidden)
            )
        return self._mixtures[key]

    def _table_of(self, table: PackedWeight) -> WgpuTable | None:
        """The same of a table."""
        if table not in self._tables:
            rows = STACK_ROWS[-1]
            self._tables[table] = self.where_there_are_kernels(
                lambda: WgpuTable(self._gpu, self._steps(rows), table, rows)
            )
        return self._tables[table]

    def _steps(self, rows: int, choice: SampledChoice | None = None) -> StepBuilder:
        return StepBuilder(self._gpu, self._matrices, self._pool, rows, choice=choice)

    def _pool(self, layers: int, kv_heads: int, head_dim: int) -> KeyValuePool:
        key = layers, kv_heads, head_dim
        if key not in self._pools:
            self._pools[key] = KeyValuePool(self._gpu, *key)
        return self._pools[key]


def _require_bf16(kv_dtype: torch.dtype) -> None:
    if kv_dtype is not torch.bfloat16:
        raise NoKernel(f"keys and values in {str(kv_dtype).removeprefix('torch.')}")


class _Unwritten(KeyValueStore):
    """A store of a step that is only written down."""

    length, elsewhere = 0, None

    def reserve(self, rows: int) -> tuple[Tensor, Tensor]:
        """Not there."""
        raise AssertionError(f"{rows} rows of a store were asked for while a step is written down")
