"""Code2wav: frames of codes -> a waveform, in one call or streamed (spec section 8).

A windowed transformer over frames, then causal convolutions that multiply the rows: all see the past only, but for the
transposed ones, whose output waits for the next row. So a waveform is shorter than its frames by ``config.look_ahead``
samples, of any prefix of the frames it is a prefix, and a stream whose state has each layer's context gives the samples
of one run over all frames. transformers' ``chunked_decode`` recomputes 25 frames for each chunk,
which is too few for the transformer, and drops ``look_ahead`` samples at every joint; this does neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lluda.backends.backend import CacheLayout, ComputeBackend
from lluda.backends.blocks import LayerNorm, Projection, ResidualUnit
from lluda.backends.capture import StreamRows
from lluda.backends.components import (
    CausalConvolution,
    ConvNeXtBlock,
    Observer,
    TransposedConvolution,
    UpsampleBlock,
    Vocoder,
)
from lluda.backends.weight import Parameters
from lluda.config.code2wav import Code2WavConfig
from lluda.errors import InvalidRequest
from lluda.models.components import BY_NAME
from lluda.models.conv import ConvState, causal_conv, depthwise_conv, mono_conv, transposed_conv
from lluda.models.decoder import DecoderStack, stack_parameters
from lluda.models.sliding_cache import SlidingCache
from lluda.parameters import ParameterSpec

PREFIX = BY_NAME["code2wav"].prefix

FRAMES_AT_ONCE = 25
"""Frames of one pass: longer pushes are cut, so that memory is bounded and activations fit the processor's caches."""

DILATIONS, TAPS = (1, 3, 9), 7
"""Of the residual units of a block: one unit a dilation, its first convolution of so many taps."""

EXPANSION = 4
"""How much wider a ConvNeXt block is inside."""

_LAYER_NORM_EPS = 1e-6
_SNAKE_EPS = 1e-9


class _Builder:
    """Builds the parts of one vocoder from named tensors."""

    def __init__(self, parameters: Parameters, backend: ComputeBackend) -> None:
        self._backend = backend
        self._vector, self._matrix = parameters.vector, parameters.matrix

    def vocoder(self, config: Code2WavConfig, transformer: DecoderStack) -> Vocoder:
        offsets = torch.arange(config.num_quantizers, device=self._backend.device)[:, None] * config.codebook_size
        rates = config.upsample_rates
        blocks = [self._upsample_block(f"{PREFIX}decoder.{1 + i}.block", rate) for i, rate in enumerate(rates)]
        return Vocoder(
            self._matrix(f"{PREFIX}code_embedding.weight"),
            offsets,
            transformer.layers,
            transformer.norm,
            [self._widen(f"{PREFIX}upsample.{i}", ratio) for i, ratio in enumerate(config.upsampling_ratios)],
            self._conv(f"{PREFIX}decoder.0"),
            blocks,
            self._snake(f"{PREFIX}decoder.{1 + len(rates)}"),
            mono_conv(*self._kernel(f"{PREFIX}decoder.{2 + len(rates)}")),
        )

    def _widen(self, name: str, ratio: int) -> tuple[TransposedConvolution, ConvNeXtBlock]:
        inner = f"{name}.1"
        norm = LayerNorm(self._vector(f"{inner}.norm.weight"), self._vector(f"{inner}.norm.bias"), _LAYER_NORM_EPS)
        convnext = ConvNeXtBlock(
            depthwise_conv(*self._kernel(f"{inner}.dwconv")),
            norm,
            self._pointwise(f"{inner}.pwconv1"),
            self._pointwise(f"{inner}.pwconv2"),
            self._vector(f"{inner}.gamma"),
        )
        return transposed_conv(self._backend, *self._kernel(f"{name}.0"), ratio), convnext

    def _upsample_block(self, name: str, rate: int) -> UpsampleBlock:
        """SnakeBeta, a transposed convolution that makes ``rate`` rows of one, three residual units."""
        return UpsampleBlock(
            self._snake(f"{name}.0"),
            transposed_conv(self._backend, *self._kernel(f"{name}.1"), rate),
            [self._residual_unit(f"{name}.{2 + i}", dilation) for i, dilation in enumerate(DILATIONS)],
        )

    def _residual_unit(self, name: str, dilation: int) -> ResidualUnit:
        """Seven taps at a dilation, then one; a SnakeBeta before each."""
        return ResidualUnit(
            self._snake(f"{name}.act1"),
            self._conv(f"{name}.conv1").projection,
            self._snake(f"{name}.act2"),
            self._conv(f"{name}.conv2").projection,
            TAPS,
            dilation,
        )

    def _snake(self, name: str) -> tuple[Tensor, Tensor]:
        """``x + sin(x * e^alpha)^2 / (e^beta + 1e-9)`` for each channel: its frequency and amplitude."""
        return self._vector(f"{name}.alpha").exp(), 1 / (self._vector(f"{name}.beta").exp() + _SNAKE_EPS)

    def _kernel(self, name: str) -> tuple[Tensor, Tensor]:
        return self._vector(f"{name}.conv.weight"), self._vector(f"{name}.conv.bias")

    def _conv(self, name: str) -> CausalConvolution:
        return causal_conv(self._backend, *self._kernel(name))

    def _pointwise(self, name: str) -> Projection:
        return Projection(self._matrix(f"{name}.weight"), self._vector(f"{name}.bias"))


class Code2WavState:
    """The state of one stream: constant memory, whatever its length."""

    def __init__(self, config: Code2WavConfig, backend: ComputeBackend) -> None:
        decoder = config.transformer
        self.frames = 0
        """Frames pushed so far."""
        self.conv_state = ConvState()
        layers, kv_heads = decoder.num_hidden_layers, decoder.num_key_value_heads
        layout = CacheLayout(layers, kv_heads, decoder.head_dim, backend.precision.compute)
        self.cache = SlidingCache(backend, layout, window=config.window, rows=FRAMES_AT_ONCE)

    def positions(self, count: int, device: torch.device) -> Tensor:
        """Of the next ``count`` frames."""
        return torch.arange(self.frames, self.frames + count, device=device)

    @property
    def nbytes(self) -> int:
        """Bytes in use."""
        return self.cache.nbytes + self.conv_state.nbytes


class Code2Wav:
    """The network. Streams share it; each has a state of its own."""

    def __init__(self, config: Code2WavConfig, parameters: Parameters, backend: ComputeBackend) -> None:
        self.config = config
        self.backend = backend
        transformer = DecoderStack(config.transformer, parameters, backend, f"{PREFIX}pre_transformer.")
        self._vocoder = _Builder(parameters, backend).vocoder(config, transformer)

    def __call__(self, codes: Tensor) -> Tensor:
        """The whole waveform of int64 ``codes [num_quantizers, frames]``: ``[config.samples(frames)]`` in [-1, 1], in
        the residual dtype. InvalidRequest as :meth:`push_all`."""
        return self.push(codes, self.stream())

    def stream(self) -> Code2WavState:
        """The state of a new stream."""
        return Code2WavState(self.config, self.backend)

    def push(self, codes: Tensor, state: Code2WavState, observe: Observer | None = None) -> Tensor:
        """:meth:`push_all` of one stream. ``observe`` is given the rows after each stage, of every pass of
        ``FRAMES_AT_ONCE`` frames: ``embeddings``, ``layers.0``, …, ``pre_transformer``, ``upsample.0``, …,
        ``decoder.0``, …"""
        return self._push([codes], [state], observe)[0]

    def push_all(self, codes: Sequence[Tensor], states: Sequence[Code2WavState]) -> list[Tensor]:
        """The next frames of each stream -> the samples that they complete, which are those that the stream gets alone.

        After n frames in all, ``config.samples(n)`` samples of a stream have come out. Nothing is buffered for an end:
        the last ``look_ahead`` samples of the last frame do not exist, also not in a waveform made in one call.

        Args:
            codes: int64 ``[num_quantizers, frames]`` of each stream, any number of frames.
            states: one for each stream, changed by the call.

        Returns:
            Samples in [-1, 1], in the residual dtype.

        Raises:
            InvalidRequest: codes of another shape or type, or outside the codebooks. All streams are as before.
        """
        return self._push(codes, states, None)

    def _push(self, codes: Sequence[Tensor], states: Sequence[Code2WavState], observe: Observer | None) -> list[Tensor]:
        for own in codes:
            self._check(own)
        none = torch.empty(0, dtype=self.backend.precision.residual, device=self.backend.device)
        samples = [[none] for _ in codes]
        parts = [
            torch.split(own.to(self.backend.device), FRAMES_AT_ONCE, dim=1) if own.numel() else () for own in codes
        ]
        with self.backend.single_threaded_torch():
            for number in range(max(map(len, parts), default=0)):
                going = [index for index, own in enumerate(parts) if number < len(own)]
                made = self._vocode([parts[i][number] for i in going], [states[i] for i in going], observe)
                for index, part in zip(going, made, strict=True):
                    samples[index].append(part)
        return [torch.cat(own) for own in samples]

    def frames_together(self, codes: Tensor, rows: StreamRows) -> Tensor:
        """Inside a captured step, the next frame of several streams: int64 ``codes [num_quantizers, streams]``, which
        are on the device and were checked -> float32 ``[streams, samples_per_frame]``, of which those are the last
        that the frame completes (:meth:`push_all`)."""
        return self.backend.vocode_together(self._vocoder, codes, rows)

    def _vocode(
        self, codes: Sequence[Tensor], states: Sequence[Code2WavState], observe: Observer | None
    ) -> list[Tensor]:
        return self.backend.vocode(self._vocoder, codes, states, observe)

    def _check(self, codes: Tensor) -> None:
        groups, size = self.config.num_quantizers, self.config.codebook_size
        if codes.dtype != torch.int64 or codes.dim() != 2 or len(codes) != groups:
            found = f"{str(codes.dtype).removeprefix('torch.')} {list(codes.shape)}"
            raise InvalidRequest(f"code2wav takes int64 codes [{groups}, frames], not {found}")
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < size:
            worst = int(codes.max()) if int(codes.max()) >= size else int(codes.min())
            raise InvalidRequest(f"code {worst} is not in a codebook of {size}; give codes from 0 to {size - 1}")


def code2wav_parameters(config: Code2WavConfig) -> Iterator[ParameterSpec]:
    """Every tensor of code2wav."""
    hidden = config.transformer.hidden_size
    table = (config.codebook_size * config.num_quantizers, hidden)
    yield ParameterSpec(f"{PREFIX}code_embedding.weight", table, "embedding")
    yield from stack_parameters(config.transformer, f"{PREFIX}pre_transformer.")
    for index, ratio in enumerate(config.upsampling_ratios):
        yield from _conv(f"{PREFIX}upsample.{index}.0", (hidden, hidden, ratio), hidden)
        yield from _convnext(f"{PREFIX}upsample.{index}.1", hidden)
    rates, width = config.upsample_rates, config.decoder_dim
    yield from _conv(f"{PREFIX}decoder.0", (width, hidden, TAPS), width)
    for index, rate in enumerate(rates, start=1):
        yield from _block(f"{PREFIX}decoder.{index}.block", width, rate)
        width //= 2
    yield from _snake(f"{PREFIX}decoder.{1 + len(rates)}", width)
    yield from _conv(f"{PREFIX}decoder.{2 + len(rates)}", (1, width, TAPS), 1)


def _convnext(name: str, width: int) -> Iterator[ParameterSpec]:
    yield ParameterSpec(f"{name}.gamma", (width,), "scale")
    yield from _conv(f"{name}.dwconv", (width, 1, TAPS), width)
    yield ParameterSpec(f"{name}.norm.weight", (width,), "norm")
    yield ParameterSpec(f"{name}.norm.bias", (width,), "bias")
    inner = EXPANSION * width
    for layer, (out, into) in {"pwconv1": (inner, width), "pwconv2": (width, inner)}.items():
        yield ParameterSpec(f"{name}.{layer}.weight", (out, into), "matrix")
        yield ParameterSpec(f"{name}.{layer}.bias", (out,), "bias")


def _block(name: str, width: int, rate: int) -> Iterator[ParameterSpec]:
    out = width // 2
    yield from _snake(f"{name}.0", width)
    yield from _conv(f"{name}.1", (width, out, 2 * rate), out)
    for index in range(2, 2 + len(DILATIONS)):
        yield from _snake(f"{name}.{index}.act1", out)
        yield from _conv(f"{name}.{index}.conv1", (out, out, TAPS), out)
        yield from _snake(f"{name}.{index}.act2", out)
        yield from _conv(f"{name}.{index}.conv2", (out, out, 1), out)


def _conv(name: str, kernel: tuple[int, int, int], out: int) -> Iterator[ParameterSpec]:
    yield ParameterSpec(f"{name}.conv.weight", kernel, "kernel")
    yield ParameterSpec(f"{name}.conv.bias", (out,), "bias")


def _snake(name: str, width: int) -> Iterator[ParameterSpec]:
    for part in ("alpha", "beta"):
        yield ParameterSpec(f"{name}.{part}", (width,), "scale")
