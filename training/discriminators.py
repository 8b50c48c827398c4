"""What tells made sound from true sound while code2wav is trained: by periods (Kong et al. 2020, HiFi-GAN) and by
complex spectra (Jang et al. 2021, UnivNet; Défossez et al. 2022, EnCodec), each narrow."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from training.spectrum import spectrum

_PERIODS = (2, 3, 5, 7, 11)
_WINDOWS = (512, 1024, 2048)
_PERIOD_CHANNELS = (8, 32, 64, 128)
_SPECTRUM_CHANNELS = 16
_SLOPE = 0.1

Judged = tuple[Tensor, list[Tensor]]
"""A discriminator's verdicts, and the features that led to them."""


class ByPeriod(nn.Module):
    """Convolutions along every ``period``-th sample."""

    def __init__(self, period: int) -> None:
        super().__init__()
        self.period = period
        widths = (1, *_PERIOD_CHANNELS)
        convolutions = [
            weight_norm(nn.Conv2d(inputs, outputs, (5, 1), (3, 1), (2, 0)))
            for inputs, outputs in itertools.pairwise(widths)
        ]
        last = widths[-1]
        self.layers = nn.ModuleList([*convolutions, weight_norm(nn.Conv2d(last, last, (5, 1), 1, (2, 0)))])
        self.out = weight_norm(nn.Conv2d(last, 1, (3, 1), 1, (1, 0)))

    def forward(self, sound: Tensor) -> Judged:
        """``[batch, samples]``."""
        usable = sound.shape[1] // self.period * self.period
        return _judge(sound[:, None, :usable].unflatten(2, (-1, self.period)), self.layers, self.out)


class BySpectrum(nn.Module):
    """Convolutions over real and imaginary parts of a short-time spectrum."""

    def __init__(self, window: int) -> None:
        super().__init__()
        width = _SPECTRUM_CHANNELS
        self.register_buffer("window", torch.hann_window(window), persistent=False)
        strided = [weight_norm(nn.Conv2d(width, width, (3, 9), (1, 2), (1, 4))) for _ in range(3)]
        first = weight_norm(nn.Conv2d(2, width, (3, 9), 1, (1, 4)))
        self.layers = nn.ModuleList([first, *strided, weight_norm(nn.Conv2d(width, width, 3, 1, 1))])
        self.out = weight_norm(nn.Conv2d(width, 1, 3, 1, 1))

    def forward(self, sound: Tensor) -> Judged:
        """``[batch, samples]``."""
        found = spectrum(sound, self.window, len(self.window) // 4)
        return _judge(found.permute(0, 3, 2, 1), self.layers, self.out)  # [batch, 2, time, bins]


class Discriminators(nn.Module):
    """All of them."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([*map(ByPeriod, _PERIODS), *map(BySpectrum, _WINDOWS)])

    def forward(self, sound: Tensor) -> list[Judged]:
        """``[batch, samples]`` -> each one's verdicts."""
        return [part(sound) for part in self.parts]


def _judge(x: Tensor, layers: Sequence[nn.Module] | nn.ModuleList, out: nn.Module) -> Judged:
    features = []
    for layer in layers:
        x = F.leaky_relu(layer(x), _SLOPE)
        features.append(x)
    return out(x), features


def halves(judged: list[Judged]) -> tuple[list[Judged], list[Judged]]:
    """Verdicts on a batch whose first half is true and second half made."""
    split = [(verdict.chunk(2), [feature.chunk(2) for feature in features]) for verdict, features in judged]
    true, made = (
        [(verdict[half], [feature[half] for feature in features]) for verdict, features in split] for half in (0, 1)
    )
    return true, made


def hinge(true: list[Judged], made: list[Judged]) -> Tensor:
    """The discriminators' loss."""
    parts = [
        F.relu(1 - one[0].float()).mean() + F.relu(1 + other[0].float()).mean()
        for one, other in zip(true, made, strict=True)
    ]
    return torch.stack(parts).mean()


def deceived(true: list[Judged], made: list[Judged]) -> tuple[Tensor, Tensor]:
    """The generator's: how little it deceives them, and how far its features are from the true ones, each feature's
    difference in units of the true one's size."""
    verdicts = torch.stack([-verdict.float().mean() for verdict, _ in made]).mean()
    distances = [
        (one.detach().float() - other.float()).abs().mean() / one.detach().float().abs().mean().clamp(min=1e-4)
        for (_, left), (_, right) in zip(true, made, strict=True)
        for one, other in zip(left, right, strict=True)
    ]
    return verdicts, torch.stack(distances).mean()
