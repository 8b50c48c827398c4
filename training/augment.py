"""Augmentation of heard sound, in batches and on the device the sound is on, drawn anew at every call.

Sound is (clips, samples) float32 at 16 kHz, right-padded with zeros, with each clip's length (int64) beside it. Sizes
are the caller's, so nothing waits for the device. Nothing here is needed at inference.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from training.noises import coloured_noise, hum, mixed_voices

RATE = 16000
_TAPS = 16
_MEL_OF_1K = 15.0
_MEL_STEP = math.log(6.4) / 27
_MEL_OF_8K = _MEL_OF_1K + math.log(8) / _MEL_STEP


@dataclass(frozen=True)
class Settings:
    """Shares are of clips; ranges are drawn from evenly."""

    speed: tuple[float, float] = (0.85, 1.2)
    noise_share: float = 0.7
    decibel_over_noise: tuple[float, float] = (0.0, 40.0)
    reverb_share: float = 0.4
    reverb_seconds: tuple[float, float] = (0.1, 0.6)
    low_pass_share: float = 0.3
    low_pass_hertz: tuple[float, float] = (3400.0, 7600.0)
    mu_law_share: float = 0.05
    clipped_share: float = 0.03
    gain_decibel: tuple[float, float] = (-30.0, 0.0)
    silence_seconds: tuple[float, float] = (0.0, 1.5)


class Augmentation:
    """Draws from one generator, so that the same seed and batches give the same sound."""

    def __init__(self, seed: int, device: torch.device | str = "cpu", settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.generator = torch.Generator(device).manual_seed(seed)
        self.device = torch.device(device)

    def __call__(self, sound: Tensor, lengths: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Speed, room, silence around, noise, channel and level, in that order, to `size` samples.

        Lengths grow by speed and silence; what is longer than `size` loses silence first, then its end.
        """
        given = self.settings
        count = len(sound)
        sound, lengths = self._at_a_speed(sound, lengths, size)
        chosen = self._chosen(given.reverb_share, count)
        sound = torch.where(chosen[:, None], self._reverberant(sound), sound)
        sound, lengths = self._with_silence(sound, lengths, size)
        sound = self._with_noise(sound, lengths)
        chosen = self._chosen(given.low_pass_share, count)
        sound = torch.where(chosen[:, None], low_passed(sound, self._between(given.low_pass_hertz, count)), sound)
        chosen = self._chosen(given.clipped_share, count)
        sound = torch.where(chosen[:, None], _clipped(sound), sound)
        sound = sound * 10 ** (self._between(given.gain_decibel, count) / 20)[:, None]
        chosen = self._chosen(given.mu_law_share, count)
        sound = torch.where(chosen[:, None], mu_law(sound), sound).clamp(-1, 1)
        return sound * within(sound, lengths), lengths

    def _at_a_speed(self, sound: Tensor, lengths: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Every second clip faster or slower; a voice as it is, is worth half of the batch."""
        moved = sound.new_zeros(len(sound), size)
        kept = min(size, sound.shape[1])
        moved[:, :kept], lengths = sound[:, :kept], lengths.clamp(max=size)
        speed = self._between(self.settings.speed, len(sound[::2]))
        moved[::2], lengths[::2] = with_speed(sound[::2], lengths[::2], speed, size)
        return moved, lengths

    def _between(self, limits: tuple[float, float], count: int) -> Tensor:
        low, high = limits
        return low + (high - low) * torch.rand(count, generator=self.generator, device=self.device)

    def _chosen(self, share: float, count: int) -> Tensor:
        return torch.rand(count, generator=self.generator, device=self.device) < share

    def _reverberant(self, sound: Tensor) -> Tensor:
        """In a room of noise that dies away: 60 dB in the drawn time, the direct sound four times its loudest part."""
        size = int(self.settings.reverb_seconds[1] * RATE)
        seconds = self._between(self.settings.reverb_seconds, len(sound))
        time = torch.arange(size, device=self.device) / RATE
        decay = torch.exp(-6.9078 * time / seconds[:, None])
        room = torch.randn(len(sound), size, generator=self.generator, device=self.device) * decay
        room = room * self._between((0.05, 0.25), len(sound))[:, None] / room.abs().amax(1, keepdim=True)
        room[:, 0] = 1
        total = sound.shape[1] + size
        heard = torch.fft.irfft(torch.fft.rfft(sound, total) * torch.fft.rfft(room, total), total)[:, : sound.shape[1]]
        return heard * (_level(sound) / _level(heard).clamp_min(1e-6))

    def _with_silence(self, sound: Tensor, lengths: Tensor, size: int) -> tuple[Tensor, Tensor]:
        before, after = ((self._between(self.settings.silence_seconds, len(sound)) * RATE).long() for _ in range(2))
        before = torch.minimum(before, (size - lengths).clamp_min(0))
        place = torch.arange(size, device=self.device) - before[:, None]
        moved = sound.gather(1, place.clamp(0, sound.shape[1] - 1))
        return moved * ((place >= 0) & (place < lengths[:, None])), (lengths + before + after).clamp(max=size)

    def _with_noise(self, sound: Tensor, lengths: Tensor) -> Tensor:
        """White, pink, hum or other clips of the batch at once, each kind for a quarter of the noisy clips."""
        count, size = sound.shape
        kinds = torch.randint(4, (count, 1), generator=self.generator, device=self.device)
        noise = coloured_noise(count, size, (kinds == 1).float()[:, 0] / 2, self.generator)
        noise = torch.where(kinds == 2, hum(count, size, RATE, self.generator), noise)
        noise = torch.where(kinds == 3, mixed_voices(sound, self.generator), noise) * within(sound, lengths)
        under = 10 ** (-self._between(self.settings.decibel_over_noise, count) / 20)
        loud = _level(sound) * (sound.shape[1] / lengths[:, None]).sqrt()
        noise = noise * (loud * under[:, None] / (_level(noise) * (size / lengths[:, None]).sqrt()).clamp_min(1e-6))
        return sound + noise * self._chosen(self.settings.noise_share, count)[:, None]


def within(sound: Tensor, lengths: Tensor) -> Tensor:
    """(clips, samples) of whether a sample is within its clip."""
    return torch.arange(sound.shape[1], device=sound.device) < lengths[:, None]


def _level(sound: Tensor) -> Tensor:
    """Root of the mean square of each row, (clips, 1)."""
    return sound.square().mean(1, keepdim=True).sqrt()


def with_speed(sound: Tensor, lengths: Tensor, speed: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Each clip faster by its factor, its pitch higher by the same, in `size` samples; a windowed sinc of 16 taps."""
    new_lengths = torch.ceil(lengths / speed).long().clamp(max=size)
    place = torch.arange(size, device=sound.device) * speed[:, None]
    whole = place.floor().long()
    part = place - whole
    # A faster clip is cut at its new Nyquist frequency, so that nothing folds back.
    cut = torch.minimum(1 / speed, torch.ones_like(speed))[:, None]
    result = torch.zeros_like(place)
    for tap in range(1 - _TAPS // 2, _TAPS // 2 + 1):
        distance = tap - part
        window = torch.cos(torch.pi * distance / (_TAPS + 1)).square()
        source = whole + tap
        heard = sound.gather(1, source.clamp(0, sound.shape[1] - 1)) * ((source >= 0) & (source < lengths[:, None]))
        result += heard * cut * torch.sinc(cut * distance) * window
    return result * within(result, new_lengths), new_lengths


def low_passed(sound: Tensor, hertz: Tensor) -> Tensor:
    """Each clip without what is above its frequency; the edge is 400 Hz wide."""
    spectrum = torch.fft.rfft(sound)
    frequency = torch.fft.rfftfreq(sound.shape[1], 1 / RATE, device=sound.device)
    return torch.fft.irfft(spectrum * ((hertz[:, None] - frequency) / 400 + 0.5).clamp(0, 1), sound.shape[1])


def mu_law(sound: Tensor) -> Tensor:
    """Through the 256 steps of a telephone line."""
    scale = math.log1p(255)
    coded = torch.round(sound.sign() * torch.log1p(255 * sound.abs().clamp(max=1)) / scale * 127) / 127
    return coded.sign() * torch.expm1(coded.abs() * scale) / 255


def _clipped(sound: Tensor) -> Tensor:
    """Overdriven: cut at 30 % of each clip's peak."""
    limit = 0.3 * sound.abs().amax(1, keepdim=True)
    return sound.clamp(-limit, limit)


def warped_features(features: Tensor, generator: torch.Generator, most: float = 0.18) -> Tensor:
    """(clips, frames, mels), all frequencies of a clip moved by a factor near 1, as by a longer or shorter vocal tract
    (Jaitly and Hinton 2013): by more than men and women differ. The pitch stays apart from it: speed moves both."""
    count, _, mels = features.shape
    factor = torch.exp(most * (2 * torch.rand(count, 1, generator=generator, device=features.device) - 1))
    bands = torch.arange(mels, device=features.device)
    place = _band_of(_hertz_of(bands, mels) * factor, mels).clamp(max=mels - 1)
    return features @ (1 - (place[:, None, :] - bands[:, None]).abs()).clamp(min=0)


def _hertz_of(bands: Tensor, mels: int) -> Tensor:
    """The middles of mel bands up to 8 kHz: of even width up to 1 kHz, then of an even ratio (Slaney)."""
    mel = (bands + 1) * _MEL_OF_8K / (mels + 1)
    return torch.where(mel < _MEL_OF_1K, mel * 200 / 3, 1000 * torch.exp((mel - _MEL_OF_1K) * _MEL_STEP))


def _band_of(hertz: Tensor, mels: int) -> Tensor:
    """The band whose middle a frequency is, between two in parts; 0 below the first."""
    high = _MEL_OF_1K + torch.log(hertz.clamp(min=1) / 1000) / _MEL_STEP
    mel = torch.where(hertz < 1000, hertz * 3 / 200, high)
    return (mel * (mels + 1) / _MEL_OF_8K - 1).clamp(min=0)


def stretched_features(
    features: Tensor, frames: Tensor, generator: torch.Generator, most: float = 0.2
) -> tuple[Tensor, Tensor]:
    """(clips, frames, mels) at another tempo, the pitch as it was, now faster and now slower within a clip; what does
    not fit is cut off.

    Returns:
        the features, zero behind each clip, and each clip's new frames.
    """
    count, size, mels = features.shape
    device = features.device

    def drawn(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, generator=generator, device=device)

    tempo, swing = torch.exp(drawn(-most, most)), drawn(0.0, 0.25)
    wave = 2 * torch.pi / drawn(50.0, 200.0)
    time = torch.arange(size, device=device)
    place = tempo * (time + swing / wave * torch.sin(wave * time + drawn(0.0, 6.28)))
    place = torch.minimum((place - place[:, :1]).clamp(min=0), frames[:, None] - 1.0)
    own = (frames / tempo[:, 0]).long().clamp(min=1, max=size)
    first = place.floor().long()
    part = (place - first)[..., None]
    then = torch.minimum(first + 1, frames[:, None] - 1)
    early, late = (features.gather(1, one[..., None].expand(-1, -1, mels)) for one in (first, then))
    return ((1 - part) * early + part * late) * (time < own[:, None])[..., None], own


def coloured_features(features: Tensor, frames: Tensor, generator: torch.Generator, decibel: float = 6.0) -> Tensor:
    """(clips, frames, mels) as through another microphone: a smooth curve over the bands is added, of up to about so
    many decibels. Ten decibels are a quarter in features."""
    count, size, mels = features.shape
    device = features.device
    bands = torch.arange(mels, device=device) / mels
    curve = torch.zeros(count, mels, device=device)
    for waves in (0.5, 1.0, 2.0):
        strength, phase = torch.rand(2, count, 1, generator=generator, device=device)
        curve += strength / 2 * torch.cos(2 * torch.pi * (waves * bands + phase))
    within_clip = torch.arange(size, device=device) < frames[:, None]
    return features + decibel / 40 * curve[:, None] * within_clip[..., None]


def masked_features(features: Tensor, frames: Tensor, generator: torch.Generator, masks: int = 2) -> Tensor:
    """SpecAugment: (clips, mels, frames) with bands of up to 20 mels and stretches of up to 25 frames set to the mean.

    A stretch is at most a tenth of its clip, so that no word of a short one goes.
    """
    count, mels, size = features.shape
    device = features.device
    mean = (features.sum((1, 2)) / (frames * mels))[:, None, None]
    hidden = torch.zeros(count, mels, size, dtype=torch.bool, device=device)
    for _ in range(masks):
        width = torch.randint(0, 21, (count, 1), generator=generator, device=device)
        start = (torch.rand(count, 1, generator=generator, device=device) * (mels - width)).long()
        place = torch.arange(mels, device=device)
        hidden |= ((place >= start) & (place < start + width))[:, :, None]
        share = torch.rand(count, 1, generator=generator, device=device)
        width = (share * torch.minimum(frames / 10, torch.full_like(frames, 25)).clamp_min(0)[:, None]).long()
        start = (torch.rand(count, 1, generator=generator, device=device) * (frames[:, None] - width)).long()
        place = torch.arange(size, device=device)
        hidden |= ((place >= start) & (place < start + width))[:, None, :]
    return torch.where(hidden & (torch.arange(size, device=device) < frames[:, None])[:, None], mean, features)
