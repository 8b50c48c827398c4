"""The audio encoder, batched: blocks of log-mel frames, each attending to itself, -> rows as wide as the thinker's."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lluda.config.audio import AudioEncoderConfig, halved
from lluda.models.audio_encoder import LAYER_NORM_EPS, sinusoids


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, rows, width = x.shape
        parts = (self.q_proj, self.k_proj, self.v_proj)
        heads = (part(x).view(batch, rows, self.heads, -1).transpose(1, 2) for part in parts)
        return self.out_proj(
            F.scaled_dot_product_attention(*heads, attn_mask=mask).transpose(1, 2).reshape(batch, rows, width)
        )


class _Layer(nn.Module):
    def __init__(self, config: AudioEncoderConfig) -> None:
        super().__init__()
        width, inner = config.d_model, config.encoder_ffn_dim
        self.self_attn_layer_norm = nn.LayerNorm(width, LAYER_NORM_EPS)
        self.self_attn = _Attention(width, config.encoder_attention_heads)
        self.final_layer_norm = nn.LayerNorm(width, LAYER_NORM_EPS)
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.self_attn(self.self_attn_layer_norm(x), mask)
        return x + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x))))


class AudioEncoder(nn.Module):
    """One block of attention for each example, at most ``config.block_frames`` frames: what is longer is cut into
    blocks before, as the engine does."""

    def __init__(self, config: AudioEncoderConfig) -> None:
        super().__init__()
        self.config = config
        channels, width = config.downsample_hidden_size, config.d_model
        self.conv2d1 = nn.Conv2d(1, channels, 3, 2, 1)
        self.conv2d2, self.conv2d3 = (nn.Conv2d(channels, channels, 3, 2, 1) for _ in range(2))
        self.conv_out = nn.Linear(channels * config.convolved_bins, width, bias=False)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.encoder_layers))
        self.ln_post = nn.LayerNorm(width, LAYER_NORM_EPS)
        self.proj1, self.proj2 = nn.Linear(width, width), nn.Linear(width, config.output_dim)
        self.register_buffer("positions", sinusoids(halved(config.chunk_frames), width), persistent=False)

    def forward(self, frames: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Log-mel ``[batch, frames, mels]``, a whole number of chunks long and zero after each example's ``lengths``
        (int64 ``[batch]``) -> rows ``[batch, tokens, output_dim]`` and how many of each are its own."""
        batch, size = len(frames), self.config.chunk_frames
        x = frames.view(-1, 1, size, frames.shape[2]).transpose(2, 3)  # [chunks, 1, mels, frames]
        # A recording of less than a chunk is convolved at its own length: what lies behind it stays zero.
        alone = (lengths < size).repeat_interleave(frames.shape[1] // size)
        width = lengths.repeat_interleave(frames.shape[1] // size)
        for conv in (self.conv2d1, self.conv2d2, self.conv2d3):
            x, width = F.gelu(conv(x)), (width + 1) // 2
            behind = torch.arange(x.shape[3], device=x.device) >= width[:, None]
            x = x.masked_fill((alone[:, None] & behind)[:, None, None], 0.0)
        chunks, channels, bins, tokens = x.shape
        x = self.conv_out(x.permute(0, 3, 1, 2).reshape(chunks, tokens, channels * bins)) + self.positions
        x, own = x.view(batch, -1, x.shape[-1]).float(), self.tokens(lengths)
        mask = (torch.arange(x.shape[1], device=x.device) < own[:, None])[:, None, None]
        for layer in self.layers:
            x = layer(x, mask)
        return self.proj2(F.gelu(self.proj1(self.ln_post(x)))), own

    def tokens(self, lengths: Tensor) -> Tensor:
        """Rows of recordings of ``lengths`` frames."""
        chunks = lengths // self.config.chunk_frames
        return chunks * halved(self.config.chunk_frames) + (lengths % self.config.chunk_frames + 7) // 8
