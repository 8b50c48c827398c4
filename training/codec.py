"""The codec's own half, thrown away at export: an encoder of sound to 12.5 rows a second, and a residual quantiser.

Code2wav's input is the mean of one row for each codebook. With the quantiser's vectors q_g and projections P_g, a table
of the rows ``groups * P_g(q_g)`` makes that mean the sum of ``P_g(q_g)``, which is what the codec was trained with.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.sound_set import FRAME, PLACES
from training.spectrum import LogMel
from training.twin.decoder import rotate

MELS, HOP = 100, 240
_WIDTH, _INNER, _HEADS, _LAYERS, _REACH = 256, 640, 4, 4, 16
_VECTOR = 16
_DECAY = 0.99


class _Halving(nn.Module):
    """Two rows to one, then a residual convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.halve = nn.Conv1d(_WIDTH, _WIDTH, 4, 2, 1)
        self.mix = nn.Conv1d(_WIDTH, _WIDTH, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.halve(x))
        return x + F.gelu(self.mix(x))


class _Block(nn.Module):
    """A transformer layer that sees ``_REACH`` rows to both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(_WIDTH), nn.LayerNorm(_WIDTH)
        self.qkv, self.out = nn.Linear(_WIDTH, 3 * _WIDTH), nn.Linear(_WIDTH, _WIDTH)
        self.fc1, self.fc2 = nn.Linear(_WIDTH, _INNER), nn.Linear(_INNER, _WIDTH)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        batch, rows, _ = x.shape
        query, key, value = self.qkv(self.norm1(x)).view(batch, rows, 3, _HEADS, -1).unbind(2)
        query, key = (rotate(part.float(), rotation).to(value.dtype) for part in (query, key))
        heads = (part.transpose(1, 2) for part in (query, key, value))
        seen = F.scaled_dot_product_attention(*heads, attn_mask=mask)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, rows, -1))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Encoder(nn.Module):
    """Waveforms to one row for each frame; row t sees its frame and about five seconds to both sides."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.mel = LogMel(1024, HOP, MELS)
        self.first = nn.Conv1d(MELS, _WIDTH, 7, 1, 3)
        self.halvings = nn.ModuleList(_Halving() for _ in range(3))
        self.blocks = nn.ModuleList(_Block() for _ in range(_LAYERS))
        self.norm, self.out = nn.LayerNorm(_WIDTH), nn.Linear(_WIDTH, hidden)
        frequencies = 10000.0 ** (-torch.arange(0, _WIDTH // _HEADS, 2) / (_WIDTH // _HEADS))
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, sound: Tensor) -> Tensor:
        """``[batch, frames * FRAME]`` -> ``[batch, frames, hidden]`` float32."""
        mel = self.mel(sound)[..., : sound.shape[1] // HOP]
        x = F.gelu(self.first(mel))
        for halving in self.halvings:
            x = halving(x)
        x = x.transpose(1, 2)
        places = torch.arange(x.shape[1], device=x.device)
        angles = places[:, None] * self.frequencies
        mask = (places[:, None] - places).abs() <= _REACH
        for block in self.blocks:
            x = block(x, (angles.cos(), angles.sin()), mask)
        return self.out(self.norm(x)).float()


class Quantiser(nn.Module):
    """Residual vector quantisation: each stage projects what is left to 16 numbers, takes the nearest of its vectors
    and projects that back. Vectors are running means of what chose them; one that nothing chooses is placed anew."""

    def __init__(self, hidden: int, groups: int, codes: int) -> None:
        super().__init__()
        self.groups, self.codes = groups, codes
        self.inner = nn.ModuleList(nn.Linear(hidden, _VECTOR) for _ in range(groups))
        self.outer = nn.ModuleList(nn.Linear(_VECTOR, hidden) for _ in range(groups))
        self.register_buffer("vectors", torch.randn(groups, codes, _VECTOR))
        self.register_buffer("counts", torch.ones(groups, codes))
        self.register_buffer("sums", torch.randn(groups, codes, _VECTOR))

    def forward(self, x: Tensor, used: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rows ``[batch, frames, hidden]`` float32; ``used [batch]``: stages of each sequence, None for all.

        Returns what the stages give together, of the same shape; what the first stage gives; codes int64
        ``[batch, groups, frames]``; and the loss that keeps the rows near the vectors. The vectors of a module in
        training follow the rows.
        """
        left, total, loss, codes, first = x, torch.zeros_like(x), x.new_zeros(()), [], x
        for group in range(self.groups):
            inner = self.inner[group](left)
            chosen = self.nearest(inner.detach(), group)
            vector = F.embedding(chosen, self.vectors[group])
            active = None if used is None else (used > group).float()[:, None, None]
            error = (inner - vector).square() if active is None else (inner - vector).square() * active
            loss = loss + error.mean()
            if self.training:
                self.follow(inner.detach(), chosen, group)
            # Straight through: the gradient passes the choice as if it had changed nothing.
            out = self.outer[group](inner + (vector - inner).detach())
            out = out if active is None else out * active
            first = out if group == 0 else first
            left, total = left - out, total + out
            codes.append(chosen)
        return total, first, torch.stack(codes, dim=1), loss / self.groups

    def nearest(self, inner: Tensor, group: int) -> Tensor:
        """int64 ``[batch, frames]``: the vectors of a stage nearest to rows ``[batch, frames, 16]``."""
        vectors = self.vectors[group]
        return (2 * inner @ vectors.T - vectors.square().sum(-1)).argmax(-1)

    @torch.no_grad()
    def follow(self, inner: Tensor, chosen: Tensor, group: int) -> None:
        """Move the vectors of a stage towards the rows that chose them."""
        index, rows = chosen.flatten(), inner.flatten(0, 1)
        counts = torch.zeros_like(self.counts[group]).index_add_(0, index, torch.ones_like(rows[:, 0]))
        self.counts[group].lerp_(counts, 1 - _DECAY)
        self.sums[group].lerp_(torch.zeros_like(self.sums[group]).index_add_(0, index, rows), 1 - _DECAY)
        self.vectors[group] = self.sums[group] / self.counts[group].clamp(min=1e-3)[:, None]

    @torch.no_grad()
    def place(self, x: Tensor, dead_below: float) -> Tensor:
        """Put vectors that fewer than ``dead_below`` of a step's rows choose (running mean) onto rows of this step;
        infinity places all. Returns how many were placed."""
        left, placed = x.flatten(0, 1), 0
        for group in range(self.groups):
            inner = self.inner[group](left)
            dead = self.counts[group] < dead_below
            picked = inner[torch.randint(len(inner), (self.codes,), device=x.device)]
            picked = picked + 0.01 * inner.std() * torch.randn_like(picked)
            self.vectors[group] = torch.where(dead[:, None], picked, self.vectors[group])
            fresh = len(left) / self.codes
            self.counts[group] = torch.where(dead, torch.full_like(self.counts[group], fresh), self.counts[group])
            self.sums[group] = torch.where(dead[:, None], picked * fresh, self.sums[group])
            placed = placed + dead.sum()
            left = left - self.outer[group](F.embedding(self.nearest(inner, group), self.vectors[group]))
        return placed

    @torch.no_grad()
    def table(self) -> Tensor:
        """Code2wav's ``code_embedding.weight [groups * codes, hidden]`` that gives the sum of the stages."""
        rows = [self.groups * self.outer[group](self.vectors[group]) for group in range(self.groups)]
        return torch.cat(rows)


class PhonemeHead(nn.Module):
    """Phonemes of a codebook's or all codebooks' rows, ``PLACES`` a frame."""

    def __init__(self, hidden: int, phonemes: int) -> None:
        super().__init__()
        self.widen = nn.Linear(hidden, PLACES * hidden)
        self.mix = nn.ModuleList(nn.Conv1d(hidden, hidden, 5, 1, 2) for _ in range(2))
        self.out = nn.Linear(hidden, phonemes)

    def forward(self, rows: Tensor) -> Tensor:
        """``[batch, frames, hidden]`` -> logits ``[batch, PLACES * frames, phonemes]``."""
        x = self.widen(rows).view(rows.shape[0], -1, rows.shape[2]).transpose(1, 2)
        for conv in self.mix:
            x = x + F.gelu(conv(x))
        return self.out(x.transpose(1, 2))


@torch.no_grad()
def encode_all(encoder: Encoder, quantiser: Quantiser, sound: Tensor, whole: int = 256, around: int = 96) -> Tensor:
    """Codes int16 ``[groups, frames]`` of int16 ``sound [frames * FRAME]``, in windows of ``whole`` frames with
    ``around`` more on both sides, which is all that a row sees."""
    quantiser.eval()
    frames, parts = len(sound) // FRAME, []
    padded = F.pad(sound, (around * FRAME, (around + whole) * FRAME))
    windows = padded.unfold(0, (whole + 2 * around) * FRAME, whole * FRAME)
    for group in torch.split(windows[: -(-frames // whole)], 16):
        rows = encoder(group.float() / 32768)
        parts.append(quantiser(rows)[2][..., around : around + whole].transpose(0, 1).flatten(1).to(torch.int16))
    return torch.cat(parts, dim=1)[:, :frames]
