"""Code2wav, batched: frames of codes, or of what a quantiser made, -> waveforms.

Rows are ``[batch, time, channels]``, and every convolution is one product over its taps side by side, as in
lluda.models.conv: with 12 to 192 channels that is faster on a GPU than its convolutions are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lluda.config.code2wav import Code2WavConfig
from training.twin.decoder import DecoderStack

_DILATIONS = (1, 3, 9)
_TAPS = 7
_EXPANSION = 4


def taps_of(x: Tensor, taps: int, dilation: int) -> Tensor:
    """``[batch, time, channels]`` -> ``[batch, time - (taps - 1) * dilation, taps * channels]``: the rows that each
    output row sees, oldest first."""
    rows = x.shape[1] - (taps - 1) * dilation
    return torch.cat([x[:, tap * dilation : tap * dilation + rows] for tap in range(taps)], dim=-1)


class CausalConv(nn.Module):
    """Output i sees inputs up to i, zeros before the first."""

    def __init__(self, inputs: int, outputs: int, taps: int, dilation: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, taps)
        self.taps, self.dilation = taps, dilation

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, time, inputs]`` -> ``[batch, time, outputs]``."""
        if self.taps > 1:
            x = taps_of(F.pad(x, (0, 0, (self.taps - 1) * self.dilation, 0)), self.taps, self.dilation)
        return F.linear(x, self.conv.weight.transpose(1, 2).flatten(1), self.conv.bias)


class DepthwiseConv(nn.Module):
    """A causal convolution of each channel by itself."""

    def __init__(self, channels: int, taps: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, taps, groups=channels)
        self.taps = taps

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, time, channels]`` -> the same in float32."""
        padded, kernel = F.pad(x.float(), (0, 0, self.taps - 1, 0)), self.conv.weight[:, 0]
        parts = [padded[:, tap : tap + x.shape[1]] * kernel[:, tap] for tap in range(self.taps)]
        return torch.stack(parts).sum(0) + self.conv.bias


class TransposedConv(nn.Module):
    """``stride`` rows of each input row; a kernel of twice the stride sees the row before too, and the first row, which
    has none, gives nothing."""

    def __init__(self, inputs: int, outputs: int, stride: int, taps: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose1d(inputs, outputs, taps * stride, stride)
        self.stride, self.taps, self.outputs = stride, taps, outputs

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, time, inputs]`` -> ``[batch, (time - taps + 1) * stride, outputs]``."""
        kernel = self.conv.weight.unflatten(2, (self.taps, self.stride)).flip(2)  # [inputs, outputs, taps, stride]
        weight = kernel.permute(3, 1, 2, 0).reshape(self.stride * self.outputs, -1)
        runs = F.linear(taps_of(x, self.taps, 1), weight, self.conv.bias.repeat(self.stride))
        return runs.view(x.shape[0], -1, self.outputs)


class SnakeBeta(nn.Module):
    """``x + sin(x * e^alpha)^2 / (e^beta + 1e-9)``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha, self.beta = (nn.Parameter(torch.zeros(channels)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """``[..., channels]`` -> the same, in the dtype of ``x``."""
        exact = x.float()
        return (exact + (exact * self.alpha.exp()).sin().square() / (self.beta.exp() + 1e-9)).to(x.dtype)


class ConvNeXt(nn.Module):
    """``x + gamma * pwconv2(gelu(pwconv1(norm(dwconv(x)))))``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels,), 1e-2))
        self.dwconv = DepthwiseConv(channels, _TAPS)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.pwconv1 = nn.Linear(channels, _EXPANSION * channels)
        self.pwconv2 = nn.Linear(_EXPANSION * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, time, channels]`` -> the same."""
        return x + self.gamma * self.pwconv2(F.gelu(self.pwconv1(self.norm(self.dwconv(x)))))


class ResidualUnit(nn.Module):
    """``x + conv2(act2(conv1(act1(x))))``."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.act1, self.act2 = SnakeBeta(channels), SnakeBeta(channels)
        self.conv1 = CausalConv(channels, channels, _TAPS, dilation)
        self.conv2 = CausalConv(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, time, channels]`` -> the same."""
        return x + self.conv2(self.act2(self.conv1(self.act1(x))))


class DecoderBlock(nn.Module):
    """A SnakeBeta, a transposed convolution that halves the channels, three residual units."""

    def __init__(self, channels: int, rate: int) -> None:
        super().__init__()
        half = channels // 2
        units = [ResidualUnit(half, dilation) for dilation in _DILATIONS]
        self.block = nn.ModuleList([SnakeBeta(channels), TransposedConv(channels, half, rate, 2), *units])

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, time, channels]`` -> ``[batch, (time - 1) * rate, channels / 2]``."""
        for part in self.block:
            x = part(x)
        return x


class Code2Wav(nn.Module):
    """The network: ``latents`` of codes, ``frames`` through the windowed transformer, ``waveform`` of those."""

    def __init__(self, config: Code2WavConfig) -> None:
        super().__init__()
        self.config = config
        width, channels = config.transformer.hidden_size, config.decoder_dim
        self.code_embedding = nn.Embedding(config.num_quantizers * config.codebook_size, width)
        self.pre_transformer = DecoderStack(config.transformer)
        self.upsample = nn.ModuleList(
            nn.ModuleList([TransposedConv(width, width, ratio, 1), ConvNeXt(width)])
            for ratio in config.upsampling_ratios
        )
        rates = config.upsample_rates
        blocks = [DecoderBlock(channels >> index, rate) for index, rate in enumerate(rates)]
        last = channels >> len(rates)
        self.decoder = nn.ModuleList(
            [CausalConv(width, channels, _TAPS), *blocks, SnakeBeta(last), CausalConv(last, 1, _TAPS)]
        )

    def latents(self, codes: Tensor) -> Tensor:
        """int64 ``[batch, num_quantizers, frames]`` -> the mean of their rows ``[batch, frames, hidden]``."""
        offsets = torch.arange(self.config.num_quantizers, device=codes.device) * self.config.codebook_size
        return self.code_embedding(codes + offsets[:, None]).mean(1)

    def frames(self, latents: Tensor) -> Tensor:
        """``[batch, frames, hidden]`` -> the transformer's rows, of the same shape."""
        return self.pre_transformer.norm(self.pre_transformer(latents)[0])

    def waveform(self, x: Tensor) -> Tensor:
        """The transformer's rows ``[batch, frames, hidden]`` -> samples ``[batch, config.samples(frames)]``, not yet
        clamped to [-1, 1]. The convolutions begin with zeros before the first row."""
        for widen, convnext in self.upsample:
            x = convnext(widen(x))
        *parts, last = self.decoder
        for part in parts:
            x = part(x)
        with torch.autocast(x.device.type, enabled=False):
            return last(x.float())[..., 0]

    def forward(self, codes: Tensor) -> Tensor:
        """int64 ``[batch, num_quantizers, frames]`` -> samples in [-1, 1]."""
        return self.waveform(self.frames(self.latents(codes))).clamp(-1, 1)
