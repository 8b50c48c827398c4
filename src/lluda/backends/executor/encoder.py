"""Encoders of sound and pictures, and what carries their hidden states over, as the torch executor runs them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from lluda.backends.blocks import EncoderBlock
from lluda.backends.components import ConvStem, EncoderLayers, Merger, Observer, PatchEmbedding, ResizeProjection
from lluda.backends.executor.operations import RotaryTable, TorchOperations


class EncoderExecutor(TorchOperations):
    """Each method is the component call of its name in `ComputeBackend`, or a block of one."""

    def conv_stem(self, stem: ConvStem, chunks: Tensor) -> Tensor:
        """See `ComputeBackend.conv_stem`."""
        self.torch_blocks["conv_stem"] += 1
        x = chunks
        for kernel, bias in stem.convolutions:
            x = self.gelu(self.conv2d(x, kernel, bias, stride=2, padding=1))
        count, channels, bins, steps = x.shape
        rows = self.project(x.permute(0, 3, 1, 2).reshape(count * steps, channels * bins), stem.conv_out)
        return (rows.view(count, steps, -1) + stem.positions[:steps]).flatten(0, 1)

    def embed_patches(
        self, embedding: PatchEmbedding, patches: Tensor, corners: Sequence[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """See `ComputeBackend.embed_patches`."""
        self.torch_blocks["patch_embedding"] += 1
        x = self.project(patches.to(self.device, self.precision.compute), embedding.projection)
        x = x.to(self.precision.residual)
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
        table, deep = None, []
        if layers.rotary is not None:
            assert positions is not None, "an encoder with rotary positions is told them"
            table = self.rotary_table(positions, layers.rotary)
        for index, block in enumerate(layers.blocks):
            x = self.encoder_block(x, block, lengths, table)
            if observe:
                observe(f"layers.{index}", x)
            if index in layers.deepstack:
                deep.append(self.merge(layers.deepstack[index], x))
        return x, deep

    def encoder_block(
        self, x: Tensor, block: EncoderBlock, lengths: Sequence[int], rotary: RotaryTable | None
    ) -> Tensor:
        """See EncoderBlock. Rows attend to their own run of ``lengths`` rows; ``rotary`` turns queries and keys."""
        self.torch_blocks["encoder_block"] += 1
        normed = self.layer_norm(x, block.norm1)
        projected = [self.project(normed, projection) for projection in block.qkv]
        parts = projected if len(projected) == 3 else projected[0].chunk(3, dim=-1)
        query, key, value = (part.reshape(len(part), block.heads, -1) for part in parts)
        if rotary is not None:
            query, key = (self.rotate(part, rotary, None) for part in (query, key))
        x = x + self.project(self.block_attention(query, key, value, lengths), block.out)
        inner = self.project(self.layer_norm(x, block.norm2), block.fc1)
        return x + self.project(self.gelu(inner, tanh=block.tanh), block.fc2)

    def merge(self, merger: Merger, x: Tensor) -> Tensor:
        """See `ComputeBackend.merge`."""
        self.torch_blocks["merger"] += 1
        normed = self.layer_norm(x.view(-1, len(merger.norm.weight)), merger.norm)
        grouped = normed.view(-1, merger.inner.weight.in_features)
        return self.project(self.gelu(self.project(grouped, merger.inner)), merger.outer)

    def resize(self, projection: ResizeProjection, x: Tensor) -> Tensor:
        """See `ComputeBackend.resize`."""
        self.torch_blocks["resize"] += 1
        precision = self.precision
        inner = self.project(x.to(precision.compute), projection.linear_fc1).to(precision.residual)
        return self.project(F.silu(inner).to(precision.compute), projection.linear_fc2).to(precision.residual)
