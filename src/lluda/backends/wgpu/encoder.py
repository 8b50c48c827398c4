"""Encoders of sound and pictures on a GPU, between rows of the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lluda.backends.components import ConvStem, EncoderLayers, Merger, Observer, PatchEmbedding, ResizeProjection
from lluda.backends.wgpu.executor import WgpuExecutor
from lluda.backends.wgpu.runs.conv_stem import StemMatrices, StemRun
from lluda.backends.wgpu.runs.encoder_layers import EncoderRun
from lluda.backends.wgpu.runs.products import MergerRun, PairRun, ProjectionRun
from lluda.backends.wgpu.steps.tiled_products import padded_rows


class WgpuEncoder(WgpuExecutor):
    """Rows are filled up to whole tiles, for which runs are made."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._stems: dict[ConvStem, StemMatrices | None] = {}

    def conv_stem(self, stem: ConvStem, chunks: Tensor) -> Tensor:
        """See `ComputeBackend.conv_stem`."""
        if stem not in self._stems:
            self._stems[stem] = self.where_there_are_kernels(lambda: StemMatrices(stem))
        kernels = self._stems[stem]
        if kernels is None:
            return super().conv_stem(stem, chunks)
        count, _, bins, frames = chunks.shape
        run = self.run_of((stem, count, bins, frames), lambda memory: StemRun(memory, kernels, count, bins, frames))
        return super().conv_stem(stem, chunks) if run is None else run(chunks)

    def embed_patches(
        self, embedding: PatchEmbedding, patches: Tensor, corners: Sequence[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """See `ComputeBackend.embed_patches`. Positions are looked up on the host."""
        rows = padded_rows(len(patches))
        run = self.run_of((embedding, rows), lambda memory: ProjectionRun(memory, embedding.projection, rows))
        if run is None:
            return super().embed_patches(embedding, patches, corners)
        x = run(patches.to(self.precision.compute))
        for ids, weights in corners:
            x += self.embedding(embedding.positions, ids) * weights.to(x.dtype)[:, None]
        return x

    def encode(
        self,
        layers: EncoderLayers,
        x: Tensor,
        lengths: Sequence[int],
        positions: Tensor | None = None,
        observe: Observer | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """See `ComputeBackend.encode`."""
        rows = padded_rows(len(x))
        run = self.run_of((layers, rows), lambda memory: EncoderRun(memory, layers, rows))
        if run is None:
            return super().encode(layers, x, lengths, positions, observe)
        table = None
        if layers.rotary is not None:
            assert positions is not None, "an encoder with rotary positions is told them"
            table = self.rotary_table(positions, layers.rotary)
        x, deep = run(x, lengths, table, observe)
        return x, [rows.to(self.precision.compute) for rows in deep]

    def merge(self, merger: Merger, x: Tensor) -> Tensor:
        """See `ComputeBackend.merge`."""
        tokens = x.numel() // merger.inner.weight.in_features
        filled = padded_rows(tokens)
        run = self.run_of((merger, filled), lambda memory: MergerRun(memory, merger, filled))
        return super().merge(merger, x) if run is None else run(x)[:tokens].to(self.precision.compute)

    def resize(self, projection: ResizeProjection, x: Tensor) -> Tensor:
        """See `ComputeBackend.resize`."""
        rows, pair = padded_rows(len(x)), (projection.linear_fc1, projection.linear_fc2)
        run = self.run_of((projection, rows), lambda memory: PairRun(memory, pair, "silu", rows))
        return super().resize(projection, x) if run is None else run(x.to(self.precision.compute))
