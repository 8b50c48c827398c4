"""The vision encoder: patches of pictures and videos to rows as wide as the decoder's, with DeepStack rows beside them.

Spec section 4.2. A patch attends to its own picture, or to its own temporal slice of a video, and to nothing else; so
slices go through the layers in bounded groups, and a long video takes no more memory than a short one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lluda.backends.backend import ComputeBackend, RotaryTable
from lluda.backends.blocks import EncoderBlock, LayerNorm, Parameters, Projection
from lluda.config.vision import VisionEncoderConfig
from lluda.models.linear import Embedding, Linear
from lluda.models.rotary import rotary_frequencies
from lluda.parameters import ParameterSpec

PREFIX = "thinker.visual."

LAYER_NORM_EPS = 1e-6
"""No config names it; the released model was trained with it (spec section 0: LayerNorm 1e-6)."""

GROUP_PATCHES = 4096
"""Patches of whole slices that go through the layers together, some 200 MB of activations; a larger one goes alone."""

Grid = tuple[int, int, int]
"""Temporal slices, and rows and columns of patches of each."""

Observer = Callable[[str, Tensor], None]
"""Called with a name (``patches``, ``layers.0``, …, ``output``, ``deepstack.0``, …) and the rows there, once for each
group of slices, in order. The rows may change after the call: copy what is kept."""


@dataclass(frozen=True, slots=True)
class VisionOutput:
    """``embeddings [tokens, out_hidden_size]`` take the placeholders' rows; ``deepstack``, of the same shape each, is
    added to them after the decoder's first layers. All in the compute dtype."""

    embeddings: Tensor
    deepstack: tuple[Tensor, ...]


class VisionEncoder:
    """Patches to tokens."""

    def __init__(
        self, config: VisionEncoderConfig, parameters: Parameters, backend: ComputeBackend, prefix: str = PREFIX
    ) -> None:
        self.config = config
        self._backend = backend
        build = _Builder(config, parameters, backend)
        # A convolution whose stride is its size meets each patch once: a product with the kernel's rows.
        kernel = parameters.vector(f"{prefix}patch_embed.proj.weight").flatten(1)
        self._patch_embed = Linear(
            backend, Projection(backend.matrix(kernel)[0], parameters.vector(f"{prefix}patch_embed.proj.bias"))
        )
        self._positions = Embedding(backend, parameters.matrix(f"{prefix}pos_embed.weight"))
        self.layers = [build.layer(f"{prefix}blocks.{index}.") for index in range(config.depth)]
        self._merger = build.merger(f"{prefix}merger.")
        self._deepstack = {
            layer: build.merger(f"{prefix}merger_list.{index}.")
            for index, layer in enumerate(config.deepstack_visual_indexes)
        }
        # Half of a head's frequencies turn with the row, half with the column.
        self._frequencies = rotary_frequencies(config.head_dim // 2, config.rope_theta).to(backend.device)

    def __call__(self, patches: Tensor, grids: Sequence[Grid], observe: Observer | None = None) -> VisionOutput:
        """Pictures and videos below each other, ``patches [patches, patch_values]`` (float32, slice by slice in the
        order of merge blocks) with the grid of each -> the rows of all tokens, in order. Those of one picture or slice
        do not depend on the others."""
        config, precision, device = self.config, self._backend.precision, self._backend.device
        slices = [(rows, columns) for count, rows, columns in grids for _ in range(count)]
        assert sum(rows * columns for rows, columns in slices) == len(patches), "patches and grids do not agree"
        shape = len(patches) // config.merged_patches, config.out_hidden_size
        outputs = [torch.empty(shape, dtype=precision.compute, device=device) for _ in range(1 + len(self._deepstack))]
        start = end = 0
        for group in _groups(slices):
            start, end = end, end + sum(rows * columns for rows, columns in group)
            tokens = slice(start // config.merged_patches, end // config.merged_patches)
            for whole, part in zip(outputs, self._encode(patches[start:end], group, observe), strict=True):
                whole[tokens] = part
        return VisionOutput(outputs[0], tuple(outputs[1:]))

    def _encode(self, patches: Tensor, slices: Sequence[tuple[int, int]], observe: Observer | None) -> list[Tensor]:
        """The main rows and the DeepStack rows of whole slices of ``(rows, columns)`` patches."""
        x, rotary = self._embed(patches, slices, observe)
        lengths, deep = [rows * columns for rows, columns in slices], []
        for index, layer in enumerate(self.layers):
            x = self._backend.encoder_block(x, layer, lengths, rotary)
            if observe:
                observe(f"layers.{index}", x)
            if index in self._deepstack:
                deep.append(self._deepstack[index](x))
        out = self._merger(x)
        if observe:
            observe("output", out)
            for index, rows in enumerate(deep):
                observe(f"deepstack.{index}", rows)
        return [out, *deep]

    def _embed(
        self, patches: Tensor, slices: Sequence[tuple[int, int]], observe: Observer | None
    ) -> tuple[Tensor, RotaryTable]:
        """Residual rows ``[patches, hidden_size]`` with their learned positions, and their rotation."""
        backend, config = self._backend, self.config
        placed = torch.cat([merge_block_order(*grid, config.spatial_merge_size) for grid in slices]).to(backend.device)
        sizes = torch.tensor(slices, device=backend.device)
        sides = sizes.repeat_interleave(sizes.prod(dim=1), dim=0)
        x = self._patch_embed(patches.to(backend.device, backend.precision.compute))
        x = x.to(backend.precision.residual)
        for ids, weights in bilinear_corners(placed, sides, config.table_side):
            x += self._positions(ids) * weights.to(x.dtype)[:, None]
        if observe:
            observe("patches", x)
        turned = placed.repeat_interleave(len(self._frequencies), dim=1)
        return x, backend.rotary_table(turned, self._frequencies.repeat(2))


class _Merger:
    """``spatial_merge_size`` squared patches to one token: a LayerNorm, as wide as a patch (the main merger) or as the
    group (DeepStack's), then two products with an exact GELU between."""

    def __init__(self, backend: ComputeBackend, norm: LayerNorm, inner: Linear, outer: Linear) -> None:
        self._backend, self._norm, self._inner, self._outer = backend, norm, inner, outer

    def __call__(self, x: Tensor) -> Tensor:
        """Residual rows ``[patches, hidden_size]`` -> ``[tokens, out_hidden_size]`` in the compute dtype."""
        normed = self._backend.layer_norm(x.view(-1, len(self._norm.weight)), self._norm)
        grouped = normed.view(-1, self._inner.projection.weight.in_features)
        return self._outer(self._backend.gelu(self._inner(grouped)))


class _Builder:
    """Makes the parts of one encoder out of named tensors."""

    def __init__(self, config: VisionEncoderConfig, parameters: Parameters, backend: ComputeBackend) -> None:
        self._config, self._parameters, self._backend = config, parameters, backend

    def merger(self, prefix: str) -> _Merger:
        inner, outer = (Linear(self._backend, self._projection(f"{prefix}mlp.{index}")) for index in (0, 2))
        return _Merger(self._backend, self._norm(f"{prefix}ln_q"), inner, outer)

    def layer(self, prefix: str) -> EncoderBlock:
        return EncoderBlock(
            norm1=self._norm(f"{prefix}norm1"),
            qkv=(self._projection(f"{prefix}attn.qkv"),),
            out=self._projection(f"{prefix}attn.proj"),
            norm2=self._norm(f"{prefix}norm2"),
            fc1=self._projection(f"{prefix}mlp.linear_fc1"),
            fc2=self._projection(f"{prefix}mlp.linear_fc2"),
            heads=self._config.num_heads,
            tanh=True,
        )

    def _norm(self, name: str) -> LayerNorm:
        weight, bias = (self._parameters.vector(f"{name}.{part}") for part in ("weight", "bias"))
        return LayerNorm(weight, bias, LAYER_NORM_EPS)

    def _projection(self, name: str) -> Projection:
        return Projection(self._parameters.matrix(f"{name}.weight"), self._parameters.vector(f"{name}.bias"))


def _groups(slices: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    group: list[tuple[int, int]] = []
    held = 0
    for rows, columns in slices:
        if group and held + rows * columns > GROUP_PATCHES:
            yield group
            group, held = [], 0
        group.append((rows, columns))
        held += rows * columns
    if group:
        yield group


def merge_block_order(rows: int, columns: int, merge: int) -> Tensor:
    """Row and column of each patch of one slice, int64 ``[rows * columns, 2]``, in the order in which patches lie:
    blocks of ``merge`` x ``merge`` along the rows, each block along its own rows."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    cells = torch.stack((row, column), dim=-1).view(rows // merge, merge, columns // merge, merge, 2)
    return cells.transpose(1, 2).reshape(-1, 2)


def bilinear_corners(placed: Tensor, sides: Tensor, table_side: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The four rows of a square table, and their weights, of which each patch's position is the sum.

    ``placed [patches, 2]``: row and column in a slice of ``sides [patches, 2]``; its corners lie on the table's. Yields
    int64 ``[patches]`` and float64 ``[patches]`` four times.
    """
    scaled = placed.double() * (table_side - 1) / (sides - 1).clamp(min=1)
    low = scaled.floor().long()
    high = (low + 1).clamp(max=table_side - 1)
    share = scaled - low
    for row, row_share in ((low[:, 0], 1 - share[:, 0]), (high[:, 0], share[:, 0])):
        for column, column_share in ((low[:, 1], 1 - share[:, 1]), (high[:, 1], share[:, 1])):
            yield row * table_side + column, row_share * column_share


def vision_encoder_parameters(config: VisionEncoderConfig, prefix: str = PREFIX) -> Iterator[ParameterSpec]:
    """Every tensor of the encoder."""
    width, size = config.hidden_size, config.patch_size
    kernel = (width, config.in_channels, config.temporal_patch_size, size, size)
    yield ParameterSpec(f"{prefix}patch_embed.proj.weight", kernel, "kernel")
    yield ParameterSpec(f"{prefix}patch_embed.proj.bias", (width,), "bias")
    yield ParameterSpec(f"{prefix}pos_embed.weight", (config.num_position_embeddings, width), "embedding")
    for index in range(config.depth):
        yield from _layer_parameters(config, f"{prefix}blocks.{index}.")
    grouped = width * config.merged_patches
    yield from _merger_parameters(config, f"{prefix}merger.", width)
    for index in range(len(config.deepstack_visual_indexes)):
        yield from _merger_parameters(config, f"{prefix}merger_list.{index}.", grouped)


def _layer_parameters(config: VisionEncoderConfig, prefix: str) -> Iterator[ParameterSpec]:
    width = config.hidden_size
    yield from _norm_parameters(f"{prefix}norm1", width)
    yield from _projection_parameters(f"{prefix}attn.qkv", 3 * width, width)
    yield from _projection_parameters(f"{prefix}attn.proj", width, width)
    yield from _norm_parameters(f"{prefix}norm2", width)
    yield from _projection_parameters(f"{prefix}mlp.linear_fc1", config.intermediate_size, width)
    yield from _projection_parameters(f"{prefix}mlp.linear_fc2", width, config.intermediate_size)


def _merger_parameters(config: VisionEncoderConfig, prefix: str, normed: int) -> Iterator[ParameterSpec]:
    grouped = config.hidden_size * config.merged_patches
    yield from _norm_parameters(f"{prefix}ln_q", normed)
    yield from _projection_parameters(f"{prefix}mlp.0", grouped, grouped)
    yield from _projection_parameters(f"{prefix}mlp.2", config.out_hidden_size, grouped)


def _projection_parameters(name: str, out: int, inputs: int) -> Iterator[ParameterSpec]:
    yield ParameterSpec(f"{name}.weight", (out, inputs), "matrix")
    yield ParameterSpec(f"{name}.bias", (out,), "bias")


def _norm_parameters(name: str, width: int) -> Iterator[ParameterSpec]:
    yield ParameterSpec(f"{name}.weight", (width,), "norm")
    yield ParameterSpec(f"{name}.bias", (width,), "bias")
