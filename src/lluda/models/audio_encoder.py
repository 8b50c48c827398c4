"""The audio encoder: three convolutions over chunks of a second, then a bidirectional transformer over blocks of eight.

Spec sections 3.2 to 3.4. No chunk is convolved with its neighbour and no block attends to another, so a recording of
any length is encoded block by block, and while it is still coming in all but its last block are known already.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lluda.backends.backend import ComputeBackend
from lluda.backends.blocks import EncoderBlock, LayerNorm, Projection
from lluda.backends.components import ConvStem, EncoderLayers, Merger, Observer
from lluda.backends.weight import Parameters
from lluda.config.audio import AudioEncoderConfig
from lluda.models.components import BY_NAME
from lluda.parameters import ParameterSpec

PREFIX = BY_NAME["audio_encoder"].prefix

LAYER_NORM_EPS = 1e-5
"""torch's own, which the released model was trained with; no config names it."""

BLOCKS_AT_ONCE = 8
"""Blocks that go through the layers together: about 64 s of audio, 832 rows, some 30 MB of activations."""

CHUNKS_AT_ONCE = 4
"""Chunks convolved together: 12 MB between convolutions, which the allocator keeps; larger pieces go back to the
system and are cleared page by page each time, which takes longer than the first convolution."""


@dataclass(frozen=True, slots=True)
class SoundBlock:
    """Up to ``block_frames`` log-mel frames ``[frames, mels]`` that attend to each other. ``alone``: they are a whole
    recording of less than a chunk, convolved at its own length; any other's last chunk is filled with zeros."""

    frames: Tensor
    alone: bool


class AudioEncoder:
    """Log-mel frames to rows as wide as the decoder's."""

    def __init__(
        self, config: AudioEncoderConfig, parameters: Parameters, backend: ComputeBackend, prefix: str = PREFIX
    ) -> None:
        self.config = config
        self._backend = backend
        build = _Builder(config, parameters)
        positions = sinusoids(config.tokens(config.chunk_frames), config.d_model)
        self._stem = ConvStem(
            [build.convolution(f"{prefix}conv2d{index}") for index in (1, 2, 3)],
            Projection(parameters.matrix(f"{prefix}conv_out.weight")),
            positions.to(backend.device, backend.precision.residual),
        )
        blocks = [build.layer(f"{prefix}layers.{index}.") for index in range(config.encoder_layers)]
        self._layers = EncoderLayers(blocks)
        proj1, proj2 = (build.projection(f"{prefix}{name}") for name in ("proj1", "proj2"))
        self._output = Merger(build.norm(f"{prefix}ln_post"), proj1, proj2)

    def __call__(self, recordings: Sequence[Tensor], observe: Observer | None = None) -> Tensor:
        """Recordings ``[frames, num_mel_bins]`` (float32) -> their rows, stacked in order:
        ``[sum of config.tokens(frames), output_dim]`` in the compute dtype. A recording's rows do not depend on the
        others. Beside the result, memory is taken for BLOCKS_AT_ONCE blocks."""
        rows = sum(self.config.tokens(len(recording)) for recording in recordings)
        out = torch.empty(
            rows, self.config.output_dim, dtype=self._backend.precision.compute, device=self._backend.device
        )
        end = 0
        blocks = (block for recording in recordings for block in self._placed_blocks(recording))
        for part in self._encode(blocks, observe):
            start, end = end, end + len(part)
            out[start:end] = part
        assert end == rows, f"{end} rows were made of {rows}"
        return out

    def encode_block(self, block: SoundBlock) -> Tensor:
        """The rows that the block has in its recording: ``[config.tokens(frames), output_dim]``."""
        return next(self._encode([block], None))

    def _placed_blocks(self, recording: Tensor) -> Iterator[SoundBlock]:
        """As `sound_blocks`, on the device: so many at once as go through the layers together, since a copy of one
        would wait for the layers of those before it."""
        config = self.config
        for piece in torch.split(recording, BLOCKS_AT_ONCE * config.block_frames):
            for frames in torch.split(piece.to(self._backend.device), config.block_frames):
                if len(frames):
                    yield SoundBlock(frames, alone=len(recording) < config.chunk_frames)

    def _encode(self, blocks: Iterable[SoundBlock], observe: Observer | None) -> Iterator[Tensor]:
        """Rows of consecutive groups of blocks."""
        for group in _groups(blocks, self.config.block_frames):
            parts = [self._convolve(block) for block in group]
            x, lengths = torch.cat(parts), [len(part) for part in parts]
            if observe:
                observe("conv", x)
            x, _ = self._backend.encode(self._layers, x, lengths, observe=observe)
            x = self._backend.merge(self._output, x)
            if observe:
                observe("output", x)
            yield x

    def _convolve(self, block: SoundBlock) -> Tensor:
        """Residual rows ``[tokens, d_model]`` of a block, with their positions, which begin again in every chunk."""
        config, count = self.config, len(block.frames)
        width = count if block.alone else config.chunk_frames
        frames = F.pad(block.frames.to(self._backend.device), (0, 0, 0, -count % width))
        chunks = frames.view(-1, width, config.num_mel_bins).transpose(1, 2)[:, None]  # [chunks, 1, mels, frames]
        rows = torch.cat([self._backend.conv_stem(self._stem, part) for part in torch.split(chunks, CHUNKS_AT_ONCE)])
        # The rows of the padding are behind the last chunk's.
        return rows[: config.tokens(count)]


class _Builder:
    """Builds the parts of one encoder from named tensors."""

    def __init__(self, config: AudioEncoderConfig, parameters: Parameters) -> None:
        self._config, self._parameters = config, parameters

    def convolution(self, name: str) -> tuple[Tensor, Tensor]:
        return self._parameters.vector(f"{name}.weight"), self._parameters.vector(f"{name}.bias")

    def norm(self, name: str) -> LayerNorm:
        weight, bias = (self._parameters.vector(f"{name}.{part}") for part in ("weight", "bias"))
        return LayerNorm(weight, bias, LAYER_NORM_EPS)

    def projection(self, name: str) -> Projection:
        return Projection(self._parameters.matrix(f"{name}.weight"), self._parameters.vector(f"{name}.bias"))

    def layer(self, prefix: str) -> EncoderBlock:
        return EncoderBlock(
            norm1=self.norm(f"{prefix}self_attn_layer_norm"),
            qkv=tuple(self.projection(f"{prefix}self_attn.{name}_proj") for name in "qkv"),
            out=self.projection(f"{prefix}self_attn.out_proj"),
            norm2=self.norm(f"{prefix}final_layer_norm"),
            fc1=self.projection(f"{prefix}fc1"),
            fc2=self.projection(f"{prefix}fc2"),
            heads=self._config.encoder_attention_heads,
            tanh=False,
        )


def sound_blocks(recording: Tensor, config: AudioEncoderConfig) -> list[SoundBlock]:
    """The blocks of a whole recording ``[frames, mels]``; all but the last are full."""
    alone = len(recording) < config.chunk_frames
    return [SoundBlock(frames, alone) for frames in torch.split(recording, config.block_frames) if len(frames)]


def _groups(blocks: Iterable[SoundBlock], full: int) -> Iterator[list[SoundBlock]]:
    """A block that is not full goes alone: beside others its few rows could be summed in another order than where it
    is all there is to encode, and the rest of its recording is known."""
    group: list[SoundBlock] = []
    for block in blocks:
        if group and (len(group) == BLOCKS_AT_ONCE or len(block.frames) < full or len(group[-1].frames) < full):
            yield group
            group = []
        group.append(block)
    if group:
        yield group


def sinusoids(positions: int, width: int) -> Tensor:
    """Float32 ``[positions, width]``: sines, then cosines of ``p * w_i``, ``w_i = 10000^(-i / (width/2 - 1))``
    (Vaswani et al. 2017). Float32 by definition, as in training; a float64 run only widens them."""
    frequencies = torch.exp(torch.arange(width // 2).float() * (-math.log(10000.0) / (width // 2 - 1)))
    angles = torch.arange(positions)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def audio_encoder_parameters(config: AudioEncoderConfig, prefix: str = PREFIX) -> Iterator[ParameterSpec]:
    """Every tensor of the encoder."""
    channels, width = config.downsample_hidden_size, config.d_model
    for index, inputs in ((1, 1), (2, channels), (3, channels)):
        yield ParameterSpec(f"{prefix}conv2d{index}.weight", (channels, inputs, 3, 3), "kernel")
        yield ParameterSpec(f"{prefix}conv2d{index}.bias", (channels,), "bias")
    yield ParameterSpec(f"{prefix}conv_out.weight", (width, channels * config.convolved_bins), "matrix")
    for index in range(config.encoder_layers):
        yield from _layer_parameters(config, f"{prefix}layers.{index}.")
    yield from _norm_parameters(f"{prefix}ln_post", width)
    yield from _projection_parameters(f"{prefix}proj1", width, width)
    yield from _projection_parameters(f"{prefix}proj2", config.output_dim, width)


def _layer_parameters(config: AudioEncoderConfig, prefix: str) -> Iterator[ParameterSpec]:
    width = config.d_model
    yield from _norm_parameters(f"{prefix}self_attn_layer_norm", width)
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        yield from _projection_parameters(f"{prefix}self_attn.{name}", width, width)
    yield from _norm_parameters(f"{prefix}final_layer_norm", width)
    yield from _projection_parameters(f"{prefix}fc1", config.encoder_ffn_dim, width)
    yield from _projection_parameters(f"{prefix}fc2", width, config.encoder_ffn_dim)


def _projection_parameters(name: str, out: int, inputs: int) -> Iterator[ParameterSpec]:
    yield ParameterSpec(f"{name}.weight", (out, inputs), "matrix")
    yield ParameterSpec(f"{name}.bias", (out,), "bias")


def _norm_parameters(name: str, width: int) -> Iterator[ParameterSpec]:
    yield ParameterSpec(f"{name}.weight", (width,), "norm")
    yield ParameterSpec(f"{name}.bias", (width,), "bias")
