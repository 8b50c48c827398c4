"""A small network that hears phonemes in log-mel spectra, thrown away at export: made sound should be heard as true
sound is, which distances of spectra alone do not ask for."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from training.codec import HOP, MELS
from training.sound_set import PLACE
from training.spectrum import LogMel

_WIDTH, _LAYERS = 192, 4


class PhonemeListener(nn.Module):
    """Waveforms to phonemes, 20 ms each."""

    def __init__(self, phonemes: int) -> None:
        super().__init__()
        self.mel = LogMel(1024, HOP, MELS)
        self.first = nn.Conv1d(MELS, _WIDTH, 5, PLACE // HOP, 2)
        self.mix = nn.ModuleList(nn.Conv1d(_WIDTH, _WIDTH, 5, 1, 2) for _ in range(_LAYERS))
        self.out = nn.Linear(_WIDTH, phonemes)

    def forward(self, sound: Tensor) -> tuple[Tensor, list[Tensor]]:
        """``[batch, samples]`` -> logits ``[batch, samples // PLACE, phonemes]`` and each layer's features."""
        x = F.gelu(self.first(self.mel(sound)[..., : sound.shape[1] // HOP]))
        features = [x]
        for conv in self.mix:
            x = x + F.gelu(conv(x))
            features.append(x)
        logits = self.out(x.transpose(1, 2))
        return logits[:, : sound.shape[1] // PLACE], features

    def losses(self, true: Tensor, made: Tensor, spoken: Tensor) -> tuple[Tensor, Tensor]:
        """The listener's own, on true sound; and the maker's: cross entropy of the phonemes ``[batch, places]`` (-1
        unknown) heard in what it made and how far the features are from the true sound's, the listener unchanged."""
        logits, wanted = self(true)
        frozen = {name: value.detach() for name, value in self.named_parameters()}
        frozen |= dict(self.named_buffers())
        heard, features = functional_call(self, frozen, (made,))
        places = heard.shape[1]
        spoken = spoken[:, :places].flatten().long()
        own, other = (
            F.cross_entropy(one[:, :places].flatten(0, 1).float(), spoken, ignore_index=-1) for one in (logits, heard)
        )
        apart = [
            (one.detach().float() - two.float()).abs().mean() / one.detach().float().abs().mean().clamp(min=1e-4)
            for one, two in zip(wanted, features, strict=True)
        ]
        return own, other + torch.stack(apart).mean()
