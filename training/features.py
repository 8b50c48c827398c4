"""Log-mel features in batches, on the device the sound is on: the values of `audio_features.log_mel`."""

import torch
from torch import Tensor

from lluda.config.audio import RELEASED_MEL
from lluda.inputs.media.audio_features import mel_filters

_FLOOR = 1e-10
_RANGE = 8.0


class LogMel:
    """Holds the window and the filters on a device."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.window = torch.hann_window(RELEASED_MEL.n_fft, device=device)
        self.filters = torch.from_numpy(mel_filters(RELEASED_MEL)).float().to(device)

    def __call__(self, sound: Tensor, lengths: Tensor, frames: int) -> tuple[Tensor, Tensor]:
        """Right-padded sound -> features ``[clips, frames, 128]``, zero behind each clip, and each clip's frames.

        Args:
            sound: float32 ``[clips, samples]`` at 16 kHz.
            lengths: int64 ``[clips]``, each more than 200: the ends are mirrored.
            frames: of the result; clips that are longer are cut.
        """
        hop, half = RELEASED_MEL.hop_length, RELEASED_MEL.n_fft // 2
        own = (lengths // hop).clamp(max=frames)
        place = torch.arange(-half, frames * hop + half, device=sound.device).abs()
        last = lengths[:, None] - 1
        mirrored = (last - (last - place).abs()).clamp(0, sound.shape[1] - 1)
        windows = sound.gather(1, mirrored).unfold(1, RELEASED_MEL.n_fft, hop)[:, :frames]
        with torch.autocast(sound.device.type, enabled=False):
            power = torch.fft.rfft(windows * self.window).abs().square()
            mel = torch.log10((power @ self.filters).clamp_min(_FLOOR))
        valid = (torch.arange(frames, device=sound.device) < own[:, None])[..., None]
        peak = mel.masked_fill(~valid, -torch.inf).amax((1, 2), keepdim=True)
        return torch.where(valid, (torch.maximum(mel, peak - _RANGE) + 4) / 4, 0.0), own
