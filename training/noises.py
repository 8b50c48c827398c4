"""Noise in batches: behind speech, or heard instead of it. All is (clips, samples) with a level of about 1."""

import torch
from torch import Tensor

from training.unclear import NOISES

MAINS_HERTZ = (50.0, 60.0)
_HARMONICS = 6
_VOICES = 6
_SPEECH, _SILENCE = 0.07, 0.0003


def coloured_noise(count: int, size: int, exponent: Tensor, generator: torch.Generator) -> Tensor:
    """Noise whose amplitude falls with frequency to the power of each clip's exponent: 0 white, 0.5 pink, 1 brown."""
    device = generator.device
    spectrum = torch.fft.rfft(torch.randn(count, size, generator=generator, device=device))
    frequency = torch.arange(spectrum.shape[1], device=device).clamp_min(max(1, size // 800))
    noise = torch.fft.irfft(spectrum * frequency ** -exponent[:, None], size)
    return noise / noise.square().mean(1, keepdim=True).sqrt()


def hum(count: int, size: int, rate: int, generator: torch.Generator) -> Tensor:
    """The mains: 50 or 60 Hz with harmonics of drawn strengths and phases."""
    device = generator.device
    base = torch.tensor(MAINS_HERTZ, device=device)[torch.randint(2, (count,), generator=generator, device=device)]
    time = torch.arange(size, device=device) / rate
    total = torch.zeros(count, size, device=device)
    for harmonic in range(1, _HARMONICS + 1):
        strength, phase = torch.rand(2, count, 1, generator=generator, device=device)
        total += strength / harmonic * torch.sin(2 * torch.pi * (harmonic * base[:, None] * time + phase))
    return total / total.square().mean(1, keepdim=True).sqrt().clamp_min(1e-6)


def mixed_voices(sound: Tensor, generator: torch.Generator) -> Tensor:
    """Of 3 to 6 other clips of the batch a mixture for every clip, each started at another place."""
    count, size = sound.shape
    place = torch.arange(size, device=sound.device)
    total = torch.zeros_like(sound)
    for voice in range(_VOICES):
        start = torch.randint(size, (count, 1), generator=generator, device=sound.device)
        wanted = torch.rand(count, 1, generator=generator, device=sound.device) < (1.0 if voice < _VOICES // 2 else 0.5)
        total += sound.roll(voice + 1, 0).gather(1, (place + start) % size) * wanted
    return total


def clicks(count: int, size: int, rate: int, generator: torch.Generator) -> Tensor:
    """Knocks and clicks: about four a second, each dying away in some 10 ms."""
    device = generator.device
    hits = (torch.rand(count, size, generator=generator, device=device) < 4 / rate).float()
    hits *= torch.randn(count, size, generator=generator, device=device)
    ring = torch.exp(-torch.arange(rate // 20, device=device) / (0.003 * rate))
    ring = ring * torch.randn(count, len(ring), generator=generator, device=device)
    total = size + ring.shape[1]
    heard = torch.fft.irfft(torch.fft.rfft(hits, total) * torch.fft.rfft(ring, total), total)[:, :size]
    return heard / heard.square().mean(1, keepdim=True).sqrt().clamp_min(1e-6)


def noise_questions(kinds: Tensor, size: int, rate: int, voices: Tensor, generator: torch.Generator) -> Tensor:
    """Sound without a question, at the level of speech or up to 30 dB below.

    Args:
        kinds: int64 ``[clips]``, numbers of `unclear.NOISES`.
        size: samples of all.
        rate: hertz.
        voices: ``[clips, size]`` of speech to mix babble from.
        generator: on the device of `voices`.
    """
    silence, pink, hums, clicking, babble = (
        (kinds == NOISES.index(name))[:, None] for name in ("silence", "pink", "hum", "clicks", "babble")
    )
    count = len(kinds)
    result = coloured_noise(count, size, pink[:, 0] / 2, generator)
    result = torch.where(hums, hum(count, size, rate, generator), result)
    result = torch.where(clicking, clicks(count, size, rate, generator), result)
    result = torch.where(babble, mixed_voices(voices, generator), result)
    level = _SPEECH * 10 ** (-1.5 * torch.rand(count, 1, generator=generator, device=kinds.device))
    level = torch.where(silence, _SILENCE, level)
    return level * result / result.square().mean(1, keepdim=True).sqrt().clamp_min(1e-6)
