"""Noise in batches: behind speech, or heard instead of it. All is (clips, samples) with a level of about 1."""

import torch
from torch import Tensor

MAINS_HERTZ = (50.0, 60.0)
_HARMONICS = 6
_SILENCE = 0.0003


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
    total = torch.zeros_like(sound)
    for voice in range(6):
        moved = sound.roll(voice + 1, 0).roll(
            int(torch.randint(size, (1,), generator=generator, device=sound.device)), 1
        )
        wanted = torch.rand(count, 1, generator=generator, device=sound.device) < (1.0 if voice < 3 else 0.5)
        total += moved * wanted
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


def noise_questions(kinds: list[str], size: int, rate: int, voices: Tensor, generator: torch.Generator) -> Tensor:
    """Sound without a question, one clip a kind of `unclear.NOISES`, at the level of speech or up to 30 dB below.

    Args:
        kinds: "silence", "white", "pink", "hum", "clicks" or "babble".
        size: samples of all.
        rate: hertz.
        voices: ``[clips, samples]`` of speech to mix babble from; few of them give a babble of fewer voices.
        generator: on the device of `voices`.
    """
    count, device = len(kinds), generator.device
    exponent = torch.tensor([0.5 if kind == "pink" else 0.0 for kind in kinds], device=device)
    result = coloured_noise(count, size, exponent, generator)
    repeats = -(-size // voices.shape[1])
    babble = mixed_voices(voices.repeat(-(-count // len(voices)), repeats)[:count, :size], generator)
    others = {
        "hum": hum(count, size, rate, generator),
        "clicks": clicks(count, size, rate, generator),
        "babble": babble,
    }
    for kind, sound in others.items():
        chosen = torch.tensor([one == kind for one in kinds], device=device)
        result = torch.where(chosen[:, None], sound, result)
    level = 0.07 * 10 ** (-1.5 * torch.rand(count, 1, generator=generator, device=device))
    silent = torch.tensor([[kind == "silence"] for kind in kinds], device=device)
    level = torch.where(silent, _SILENCE, level)
    return level * result / result.square().mean(1, keepdim=True).sqrt().clamp_min(1e-6)
