"""Code2wav: frames of codes -> a waveform, whole or streamed (spec section 8).

A windowed transformer over frames, then causal convolutions that multiply the rows: all see the past only, but for the
transposed ones, whose output waits for the next row. So a waveform is shorter than its frames by ``config.look_ahead``
samples, of any prefix of the frames it is a prefix, and a stream that keeps what each layer still needs gives, sample
for sample, what one run over everything gives. transformers' ``chunked_decode`` recomputes 25 frames for each chunk,
which is too few for the transformer, and drops ``look_ahead`` samples at every joint; this does neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lluda.backends.backend import ComputeBackend
from lluda.backends.blocks import LayerNorm, Parameters, Projection, ResidualUnit, Segment
from lluda.config.code2wav import Code2WavConfig
from lluda.errors import InvalidRequest
from lluda.models.conv import CausalConv, ConvState, DepthwiseConv, MonoConv, PointwiseConv, TransposedConv
from lluda.models.decoder import DecoderStack, Observer, stack_parameters
from lluda.models.linear import Embedding
from lluda.models.sliding_cache import SlidingCache
from lluda.parameters import ParameterSpec

PREFIX = "code2wav."

FRAMES_AT_ONCE = 25
"""Frames of one pass: longer pushes are cut, so that memory stays bounded and activations near the caches."""

_DILATIONS = (1, 3, 9)
_TAPS = 7
_EXPANSION = 4
_LAYER_NORM_EPS = 1e-6
_SNAKE_EPS = 1e-9


class _Build:
    """Makes layers out of named tensors."""

    def __init__(self, parameters: Parameters, backend: ComputeBackend) -> None:
        self.backend = backend
        self.vector = parameters.vector
        self.matrix = parameters.matrix

    def kernel(self, name: str) -> tuple[Tensor, Tensor]:
        return self.vector(f"{name}.conv.weight"), self.vector(f"{name}.conv.bias")

    def conv(self, name: str) -> CausalConv:
        return CausalConv(self.backend, *self.kernel(name))

    def residual_unit(self, name: str, dilation: int) -> ResidualUnit:
        """Seven taps at a dilation, then one; a SnakeBeta before each."""
        act1, act2 = SnakeBeta(self, f"{name}.act1"), SnakeBeta(self, f"{name}.act2")
        return ResidualUnit(
            (act1.frequency, act1.amplitude),
            self.conv(f"{name}.conv1").projection,
            (act2.frequency, act2.amplitude),
            self.conv(f"{name}.conv2").projection,
            _TAPS,
            dilation,
        )

    def pointwise(self, name: str) -> PointwiseConv:
        projection = Projection(self.matrix(f"{name}.weight"), self.vector(f"{name}.bias"))
        return PointwiseConv(self.backend, projection)


class SnakeBeta:
    """``x + sin(x * e^alpha)^2 / (e^beta + 1e-9)`` for each channel; the exponentials are taken once."""

    def __init__(self, build: _Build, name: str) -> None:
        self._backend = build.backend
        self.frequency = build.vector(f"{name}.alpha").exp()
        self.amplitude = 1 / (build.vector(f"{name}.beta").exp() + _SNAKE_EPS)

    def __call__(self, x: Tensor) -> Tensor:
        """``[rows, channels]`` -> the same in the compute dtype."""
        return self._backend.snake_beta(x, self.frequency, self.amplitude)


class ConvNeXt:
    """``x + gamma * pwconv2(gelu(pwconv1(norm(dwconv(x)))))`` (Liu et al. 2022)."""

    def __init__(self, build: _Build, name: str) -> None:
        self._backend = build.backend
        self._dwconv = DepthwiseConv(*build.kernel(f"{name}.dwconv"))
        self._norm = LayerNorm(build.vector(f"{name}.norm.weight"), build.vector(f"{name}.norm.bias"), _LAYER_NORM_EPS)
        self._pwconv1, self._pwconv2 = build.pointwise(f"{name}.pwconv1"), build.pointwise(f"{name}.pwconv2")
        self._gamma = build.vector(f"{name}.gamma")

    def __call__(self, streams: Sequence[Tensor], kept: Sequence[ConvState]) -> list[Tensor]:
        """``[rows, channels]`` -> the same of each stream, in the residual dtype."""
        inner = [
            self._backend.layer_norm(self._dwconv(x, own), self._norm) for x, own in zip(streams, kept, strict=True)
        ]
        inner = [self._backend.gelu(x) for x in self._pwconv1(inner)]
        return [
            torch.addcmul(x, rows.to(x.dtype), self._gamma)
            for x, rows in zip(streams, self._pwconv2(inner), strict=True)
        ]


class DecoderBlock:
    """SnakeBeta, a transposed convolution that makes ``rate`` rows of one, three residual units."""

    def __init__(self, build: _Build, name: str, rate: int) -> None:
        self._backend = build.backend
        self._act = SnakeBeta(build, f"{name}.0")
        self._upsample = TransposedConv(build.backend, *build.kernel(f"{name}.1"), rate)
        self._units = [build.residual_unit(f"{name}.{2 + i}", dilation) for i, dilation in enumerate(_DILATIONS)]

    def __call__(self, streams: Sequence[Tensor], kept: Sequence[ConvState]) -> list[Tensor]:
        """``[rows, channels]`` -> ``[rows * rate, channels / 2]`` of each stream, in the residual dtype."""
        widened = self._upsample([self._act(x) for x in streams], kept)
        lengths = [len(x) for x in widened]
        x = _below_each_other([rows.to(self._backend.precision.residual) for rows in widened])
        for unit in self._units:
            x = self._backend.residual_unit(x, lengths, unit, kept)
        return list(torch.split(x, lengths))


class Code2WavState:
    """What one stream still needs of its past: constant memory however long it gets."""

    def __init__(self, config: Code2WavConfig, backend: ComputeBackend) -> None:
        decoder = config.transformer
        self.frames = 0
        """Frames pushed so far."""
        self.kept = ConvState()
        self.cache = SlidingCache(
            (decoder.num_hidden_layers, decoder.num_key_value_heads, decoder.head_dim),
            window=config.window,
            rows=FRAMES_AT_ONCE,
            dtype=backend.precision.compute,
            device=backend.device,
        )

    def positions(self, count: int, device: torch.device) -> Tensor:
        """Of the next ``count`` frames."""
        return torch.arange(self.frames, self.frames + count, device=device)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.cache.nbytes + self.kept.nbytes


class Code2Wav:
    """The network. Streams share it; each has a state of its own."""

    def __init__(self, config: Code2WavConfig, parameters: Parameters, backend: ComputeBackend) -> None:
        self.config = config
        self.backend = backend
        build = _Build(parameters, backend)
        self._embedding = Embedding(backend, build.matrix(f"{PREFIX}code_embedding.weight"))
        self._offsets = torch.arange(config.num_quantizers, device=backend.device)[:, None] * config.codebook_size
        self._transformer = DecoderStack(config.transformer, parameters, backend, f"{PREFIX}pre_transformer.")
        self._upsample = []
        for index, ratio in enumerate(config.upsampling_ratios):
            name = f"{PREFIX}upsample.{index}"
            widen = TransposedConv(backend, *build.kernel(f"{name}.0"), ratio)
            self._upsample.append((widen, ConvNeXt(build, f"{name}.1")))
        rates = config.upsample_rates
        self._first = build.conv(f"{PREFIX}decoder.0")
        self._blocks = [DecoderBlock(build, f"{PREFIX}decoder.{1 + i}.block", rate) for i, rate in enumerate(rates)]
        self._act = SnakeBeta(build, f"{PREFIX}decoder.{1 + len(rates)}")
        self._last = MonoConv(*build.kernel(f"{PREFIX}decoder.{2 + len(rates)}"))

    def __call__(self, codes: Tensor) -> Tensor:
        """The whole waveform of int64 ``codes [num_quantizers, frames]``: ``[config.samples(frames)]`` in [-1, 1], in
        the residual dtype. InvalidRequest as :meth:`push_all`."""
        return self.push(codes, self.stream())

    def stream(self) -> Code2WavState:
        """The state of a new stream."""
        return Code2WavState(self.config, self.backend)

    def push(self, codes: Tensor, state: Code2WavState, observe: Observer | None = None) -> Tensor:
        """:meth:`push_all` of one stream. ``observe`` is told the rows after each stage, of every pass of
        ``FRAMES_AT_ONCE`` frames: ``embeddings``, ``layers.0``, …, ``pre_transformer``, ``upsample.0``, …,
        ``decoder.0``, …"""
        return self._push([codes], [state], observe)[0]

    def push_all(self, codes: Sequence[Tensor], states: Sequence[Code2WavState]) -> list[Tensor]:
        """The next frames of each stream -> the samples that they complete, which are those that the stream gets alone.

        After n frames in all, ``config.samples(n)`` samples of a stream have come out. Nothing is held back for an end:
        the last ``look_ahead`` samples of the last frame do not exist, also for a waveform made whole.

        Args:
            codes: int64 ``[num_quantizers, frames]`` of each stream, any number of frames.
            states: the streams' own, no one twice, changed by this.

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
                made = self._run([parts[i][number] for i in going], [states[i] for i in going], observe)
                for index, part in zip(going, made, strict=True):
                    samples[index].append(part)
        return [torch.cat(own) for own in samples]

    def frame(self, codes: Tensor, state: Code2WavState) -> Tensor:
        """As :meth:`push` of one frame, with codes that are on the device and were looked at."""
        return self._run([codes], [state], None)[0]

    def _run(self, codes: Sequence[Tensor], states: Sequence[Code2WavState], watch: Observer | None) -> list[Tensor]:
        def told(name: str, streams: Sequence[Tensor]) -> None:
            if watch:
                watch(name, _below_each_other(streams))

        compute, residual = self.backend.precision.compute, self.backend.precision.residual
        kept = [state.kept for state in states]
        streams = self._frames(codes, states, watch)
        told("pre_transformer", streams)
        for index, (widen, convnext) in enumerate(self._upsample):
            widened = widen([x.to(compute) for x in streams], kept)
            streams = convnext([x.to(residual) for x in widened], kept)
            told(f"upsample.{index}", streams)
        streams = self._first([x.to(compute) for x in streams], kept)
        told("decoder.0", streams)
        for index, block in enumerate(self._blocks, start=1):
            streams = block(streams, kept)
            told(f"decoder.{index}", streams)
        return [self._last(self._act(x), own).clamp_(-1, 1) for x, own in zip(streams, kept, strict=True)]

    def _frames(self, codes: Sequence[Tensor], states: Sequence[Code2WavState], watch: Observer | None) -> list[Tensor]:
        """Codes ``[num_quantizers, n]`` of each stream -> the transformer's rows ``[n, hidden]`` in the compute
        dtype."""
        lengths = [own.shape[1] for own in codes]
        rows: list[Tensor] = []
        for part in self.backend.step_parts(lengths):
            rows += self._transformed(codes[part], states[part], watch)
        for count, state in zip(lengths, states, strict=True):
            state.cache.advance(count)
            state.frames += count
        return [self.backend.rms_norm(x, self._transformer.norm) for x in rows]

    def _transformed(
        self, codes: Sequence[Tensor], states: Sequence[Code2WavState], watch: Observer | None
    ) -> list[Tensor]:
        lengths = [own.shape[1] for own in codes]
        segments: list[Segment] = []
        for count, state in zip(lengths, states, strict=True):
            start = sum(segment.rows for segment in segments)
            segments.append(Segment(start, count, state.cache))
        x = _below_each_other([self._embedded(own) for own in codes])
        if watch:
            watch("embeddings", x)
        places = zip(states, lengths, strict=True)
        positions = torch.cat([state.positions(count, x.device) for state, count in places])
        # Told nothing, a backend may run all layers as one.
        return list(torch.split(self._transformer.run(x, positions, segments, watch), lengths))

    def _embedded(self, codes: Tensor) -> Tensor:
        rows = self._embedding((codes + self._offsets).flatten())
        return rows.view(len(codes), codes.shape[1], -1).mean(0)

    def _check(self, codes: Tensor) -> None:
        groups, size = self.config.num_quantizers, self.config.codebook_size
        if codes.dtype != torch.int64 or codes.dim() != 2 or len(codes) != groups:
            found = f"{str(codes.dtype).removeprefix('torch.')} {list(codes.shape)}"
            raise InvalidRequest(f"code2wav takes int64 codes [{groups}, frames], not {found}")
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < size:
            worst = int(codes.max()) if int(codes.max()) >= size else int(codes.min())
            raise InvalidRequest(f"code {worst} is not in a codebook of {size}; give codes from 0 to {size - 1}")


def _below_each_other(streams: Sequence[Tensor]) -> Tensor:
    return streams[0] if len(streams) == 1 else torch.cat(list(streams))


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
    yield from _conv(f"{PREFIX}decoder.0", (width, hidden, _TAPS), width)
    for index, rate in enumerate(rates, start=1):
        yield from _block(f"{PREFIX}decoder.{index}.block", width, rate)
        width //= 2
    yield from _snake(f"{PREFIX}decoder.{1 + len(rates)}", width)
    yield from _conv(f"{PREFIX}decoder.{2 + len(rates)}", (1, width, _TAPS), 1)


def _convnext(name: str, width: int) -> Iterator[ParameterSpec]:
    yield ParameterSpec(f"{name}.gamma", (width,), "scale")
    yield from _conv(f"{name}.dwconv", (width, 1, _TAPS), width)
    yield ParameterSpec(f"{name}.norm.weight", (width,), "norm")
    yield ParameterSpec(f"{name}.norm.bias", (width,), "bias")
    inner = _EXPANSION * width
    for layer, (out, into) in {"pwconv1": (inner, width), "pwconv2": (width, inner)}.items():
        yield ParameterSpec(f"{name}.{layer}.weight", (out, into), "matrix")
        yield ParameterSpec(f"{name}.{layer}.bias", (out,), "bias")


def _block(name: str, width: int, rate: int) -> Iterator[ParameterSpec]:
    out = width // 2
    yield from _snake(f"{name}.0", width)
    yield from _conv(f"{name}.1", (width, out, 2 * rate), out)
    for index in range(2, 2 + len(_DILATIONS)):
        yield from _snake(f"{name}.{index}.act1", out)
        yield from _conv(f"{name}.{index}.conv1", (out, out, _TAPS), out)
        yield from _snake(f"{name}.{index}.act2", out)
        yield from _conv(f"{name}.{index}.conv2", (out, out, 1), out)


def _conv(name: str, kernel: tuple[int, int, int], out: int) -> Iterator[ParameterSpec]:
    yield ParameterSpec(f"{name}.conv.weight", kernel, "kernel")
    yield ParameterSpec(f"{name}.conv.bias", (out,), "bias")


def _snake(name: str, width: int) -> Iterator[ParameterSpec]:
    for part in ("alpha", "beta"):
        yield ParameterSpec(f"{name}.{part}", (width,), "scale")
