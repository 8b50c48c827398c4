"""The vision encoder: patches of images and videos -> embeddings for the decoder, and DeepStack hidden states.

Spec section 4.2. A patch attends to its own image, or to its own temporal slice of a video, and to nothing else; so
slices go through the layers in bounded groups, and a long video takes no more memory than a short one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lluda.backends.backend import ComputeBackend
from lluda.backends.blocks import EncoderBlock, LayerNorm, Projection
from lluda.backends.components import EncoderLayers, Merger, Observer, PatchEmbedding, Rotary
from lluda.backends.weight import Parameters
from lluda.config.vision import VisionEncoderConfig
from lluda.formats.plain import plain_tensor
from lluda.models.components import BY_NAME
from lluda.models.rotary import rotary_frequencies
from lluda.parameters import ParameterSpec

PREFIX = BY_NAME["vision_encoder"].prefix

LAYER_NORM_EPS = 1e-6
"""No config names it; the released model was trained with it (spec section 0: LayerNorm 1e-6)."""

GROUP_PATCHES = 4096
"""Patches of whole slices that go through the layers together, some 200 MB of activations; a larger one goes alone."""

_KNOWN_SIZES = 8
"""Whose places are kept: 330 KB of one with 4,096 patches."""

Grid = tuple[int, int, int]
"""Temporal slices, and rows and columns of patches of each."""


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
        self._known: OrderedDict[tuple[int, int], tuple[Tensor, list[tuple[Tensor, Tensor]]]] = OrderedDict()
        build = _Builder(config, parameters)
        # A convolution whose stride is its size reads each patch once: a product with the kernel's rows.
        kernel = parameters.vector(f"{prefix}patch_embed.proj.weight").flatten(1)
        weight, _ = backend.take(plain_tensor(kernel), "matrix")
        projection = Projection(weight, parameters.vector(f"{prefix}patch_embed.proj.bias"))
        self._patch_embedding = PatchEmbedding(projection, parameters.matrix(f"{prefix}pos_embed.weight"))
        self._merger = build.merger(f"{prefix}merger.")
        # Half of a head's frequencies turn with the row, half with the column.
        half = rotary_frequencies(config.head_dim // 2, config.rope_theta)
        axes = torch.arange(2, device=backend.device).repeat_interleave(len(half))
        self._layers = EncoderLayers(
            [build.layer(f"{prefix}blocks.{index}.") for index in range(config.depth)],
            Rotary(half.repeat(2).to(backend.device), axes),
            {
                layer: build.merger(f"{prefix}merger_list.{index}.")
                for index, layer in enumerate(config.deepstack_visual_indexes)
            },
        )

    def __call__(self, patches: Tensor, grids: Sequence[Grid], observe: Observer | None = None) -> VisionOutput:
        """Images and videos, stacked: ``patches [patches, patch_values]`` (float32, slice by slice in the
        order of merge blocks) with the grid of each -> the rows of all tokens, in order. Those of one image or slice
        do not depend on the others."""
        config, precision, device = self.config, self._backend.precision, self._backend.device
        slices = [(rows, columns) for count, rows, columns in grids for _ in range(count)]
        assert sum(rows * columns for rows, columns in slices) == len(patches), "patches and grids do not agree"
        shape = len(patches) // config.merged_patches, config.out_hidden_size
        outputs = [
            torch.empty(shape, dtype=precision.compute, device=device) for _ in range(1 + len(self._layers.deepstack))
        ]
        start = end = 0
        for group in _groups(slices):
            start, end = end, end + sum(rows * columns for rows, columns in group)
            tokens = slice(start // config.merged_patches, end // config.merged_patches)
            for whole, part in zip(outputs, self._encode(patches[start:end], group, observe), strict=True):
                whole[tokens] = part
        return VisionOutput(outputs[0], tuple(outputs[1:]))

    def _encode(self, patches: Tensor, slices: Sequence[tuple[int, int]], observe: Observer | None) -> list[Tensor]:
        """The main rows and the DeepStack rows of whole slices of ``(rows, columns)`` patches."""
        x, placed = self._embed(patches, slices)
        if observe:
            observe("patches", x)
        x, deep = self._backend.encode(self._layers, x, [rows * columns for rows, columns in slices], placed, observe)
        out = self._backend.merge(self._merger, x)
        if observe:
            observe("output", out)
            for index, rows in enumerate(deep):
                observe(f"deepstack.{index}", rows)
        return [out, *deep]

    def _embed(self, patches: Tensor, slices: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Residual rows ``[patches, hidden_size]`` with their learned positions, and their places ``[2, patches]``."""
        known = [self._places(grid) for grid in slices]
        if len(known) == 1:
            placed, corners = known[0]
        else:
            placed = torch.cat([place for place, _ in known])
            corners = [
                (torch.cat([rows for rows, _ in corner]), torch.cat([weights for _, weights in corner]))
                for corner in zip(*(each for _, each in known), strict=True)
            ]
        return self._backend.embed_patches(self._patch_embedding, patches, corners), placed.T

    def _places(self, grid: tuple[int, int]) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Row and column of each patch of a slice, and its corners in the table, on the device: kept for the sizes that
        were met last, since pictures of one source have one size."""
        if grid not in self._known:
            placed = merge_block_order(*grid, self.config.spatial_merge_size).to(self._backend.device)
            sides = torch.tensor([grid], device=placed.device).expand(len(placed), 2)
            self._known[grid] = placed, list(bilinear_corners(placed, sides, self.config.table_side))
        self._known.move_to_end(grid)
        if len(self._known) > _KNOWN_SIZES:
            self._known.popitem(last=False)
        return self._known[grid]


class _Builder:
    """Builds the parts of one encoder from named tensors."""

    def __init__(self, config: VisionEncoderConfig, parameters: Parameters) -> None:
        self._config, self._parameters = config, parameters

    def merger(self, prefix: str) -> Merger:
        """``spatial_merge_size`` squared patches to one token: a LayerNorm, as wide as a patch (the main merger) or as
        the group (DeepStack's), then two products with an exact GELU between."""
        inner, outer = (self._projection(f"{prefix}mlp.{index}") for index in (0, 2))
        return Merger(self._norm(f"{prefix}ln_q"), inner, outer)

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
    count = 0
    for rows, columns in slices:
        if group and count + rows * columns > GROUP_PATCHES:
            yield group
            group, count = [], 0
        group.append((rows, columns))
        count += rows * columns
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
