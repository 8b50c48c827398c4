"""Spectra of waveforms at 24 kHz on any device, and how far two waveforms are apart in them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lluda.config.audio import MelConfig
from lluda.inputs.media.audio_features import mel_filters

RATE = 24000
_FLOOR = 1e-5
_WINDOWS = {128: 16, 256: 32, 512: 64, 1024: 100, 2048: 160}
"""Lengths of windows, and mel bands of each."""


@torch.compiler.disable
def spectrum(sound: Tensor, window: Tensor, hop: int) -> Tensor:
    """``[batch, samples]`` -> real and imaginary parts ``[batch, bins, times, 2]`` float32; ends mirrored. Kept out of
    compiled code, which has no complex numbers."""
    with torch.autocast(sound.device.type, enabled=False):
        found = torch.stft(sound.float(), len(window), hop, window=window, return_complex=True, pad_mode="reflect")
        return torch.view_as_real(found)


class LogMel(nn.Module):
    """log10 of mel amplitudes (Slaney's bands), ends mirrored."""

    def __init__(self, window: int, hop: int, bands: int) -> None:
        super().__init__()
        self.hop = hop
        filters = mel_filters(MelConfig(RATE, window, hop, bands))
        self.register_buffer("filters", torch.from_numpy(filters).float(), persistent=False)
        self.register_buffer("window", torch.hann_window(window), persistent=False)

    def forward(self, sound: Tensor) -> Tensor:
        """``[batch, samples]`` -> ``[batch, bands, samples // hop + 1]``."""
        found = spectrum(sound, self.window, self.hop)
        with torch.autocast(sound.device.type, enabled=False):
            amplitude = found.square().sum(-1).add(1e-9).sqrt()
            return (self.filters.T @ amplitude).clamp(min=_FLOOR).log10()


class MelDistance(nn.Module):
    """The mean absolute difference of log-mel spectra of several windows (as Kumar et al. 2023, DAC)."""

    def __init__(self) -> None:
        super().__init__()
        self.spectra = nn.ModuleList(LogMel(size, size // 4, bands) for size, bands in _WINDOWS.items())

    def forward(self, made: Tensor, true: Tensor) -> Tensor:
        """``[batch, samples]`` twice -> one number."""
        parts = [(mel(made) - mel(true)).abs().mean() for mel in self.spectra]
        return torch.stack(parts).sum()
