"""The one decoder, batched: Qwen3 blocks with attention, dense or sparse feed-forward, and layer scales.

Names and arithmetic are those of lluda.models.decoder; rows are ``[batch, rows, hidden]``. Sequences are padded on the
right, where causal attention keeps the padding from what comes before it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lluda.config.decoder import DecoderConfig, MoeConfig


class RMSNorm(nn.Module):
    """``x / rms(x) * weight``, computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """``[..., width]`` -> the same in float32."""
        x = x.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class Attention(nn.Module):
    """Causal attention with rotary positions and, where the config has them, norms of each head's query and key."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        query, key = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
        self.q_proj = nn.Linear(config.hidden_size, query, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, key, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, key, bias=config.attention_bias)
        self.o_proj = nn.Linear(query, config.hidden_size, bias=False)
        if config.use_qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.watched, self.shares = False, torch.empty(0)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        """``[batch, rows, hidden]`` -> the same. ``mask`` as `visible` gives it; None is causal."""
        batch, rows, _ = x.shape
        query, key, value = (
            layer(x).view(batch, rows, -1, self.config.head_dim) for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.config.use_qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = (rotate(part.float(), rotation).to(value.dtype).transpose(1, 2) for part in (query, key))
        shared = self.config.num_attention_heads // self.config.num_key_value_heads
        key, value = (part.repeat_interleave(shared, dim=1) for part in (key, value.transpose(1, 2)))
        if self.watched:
            self.shares = shares(query[:, 0], key[:, 0], mask)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None)
        return self.o_proj(out.transpose(1, 2).reshape(batch, rows, -1))


def shares(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """What one head gives to each row, as logarithms, float32 ``[batch, rows, rows]``; of a head to be taught."""
    scores = (query @ key.transpose(1, 2)).float() / query.shape[-1] ** 0.5
    rows = scores.shape[-1]
    seen = torch.ones(rows, rows, dtype=torch.bool, device=scores.device).tril() if mask is None else mask[:, 0]
    return scores.masked_fill(~seen, -1e4).log_softmax(-1)


def visible(rows: int, window: int | None, ahead: Tensor | None, device: torch.device) -> Tensor | None:
    """Which rows each row sees, bool ``[rows, rows]`` or ``[batch, 1, rows, rows]``: itself and those before it, of a
    ``window`` the last ones, without the first ``ahead [batch]`` rows, which are padding. None is all before it."""
    if ahead is None and (window is None or rows <= window):
        return None
    places = torch.arange(rows, device=device)
    ages = places[:, None] - places
    seen = (ages >= 0) & (ages < (window or rows))
    if ahead is None:
        return seen
    # Padding sees itself, since a softmax over nothing has no value.
    return (seen & (places >= ahead[:, None])[:, None] | (ages == 0))[:, None]


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """``[batch, rows, heads, head_dim]`` turned by cosines and sines ``[rows, head_dim / 2]``."""
    cos, sin = (part[:, None] for part in rotation)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class SwiGLU(nn.Module):
    """``down(silu(gate(x)) * up(x))``."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, width, bias=False)
        self.up_proj = nn.Linear(hidden, width, bias=False)
        self.down_proj = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., hidden]`` -> the same."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


_INNER = ("gate_proj", "up_proj")
_JITTER = 0.01


class Mixture(nn.Module):
    """A mixture of experts, all of them evaluated: two products over the experts side by side, weighted by the
    normalised choice of the router, which makes the others zero."""

    def __init__(self, hidden: int, moe: MoeConfig) -> None:
        super().__init__()
        self.moe = moe
        self.gate = nn.Linear(hidden, moe.num_experts, bias=False)
        self.experts = nn.ModuleList(SwiGLU(hidden, moe.moe_intermediate_size) for _ in range(moe.num_experts))
        if moe.shared_expert_intermediate_size:
            self.shared_expert = SwiGLU(hidden, moe.shared_expert_intermediate_size)
            self.shared_expert_gate = nn.Linear(hidden, 1, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``[batch, rows, hidden]`` float32 -> the same, and the router's loss."""
        weights, loss = self.route(x)
        gate, up = (torch.cat([getattr(expert, name).weight for expert in self.experts]) for name in _INNER)
        down = torch.cat([expert.down_proj.weight for expert in self.experts], dim=1)
        inner = F.silu(F.linear(x, gate)) * F.linear(x, up)
        weighted = inner.unflatten(-1, (len(self.experts), -1)) * weights[..., None].to(inner.dtype)
        out = F.linear(weighted.flatten(-2), down)
        if self.moe.shared_expert_intermediate_size:
            out = out + self.shared_expert(x) * torch.sigmoid(self.shared_expert_gate(x))
        return out, loss

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The weight of each expert for each row, float32 ``[batch, rows, experts]``, zero where it is not chosen; and
        0.01 of the load balancing loss (Fedus et al. 2021) with 1e-4 of the z-loss (Zoph et al. 2022)."""
        x = x.float()
        if self.training:
            # As by rounding: experts that are nearly as good must do when the other is taken.
            x = x * (1 + _JITTER * (2 * torch.rand_like(x) - 1))
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(x, self.gate.weight)
        probabilities = logits.softmax(-1)
        top, ids = probabilities.topk(self.moe.num_experts_per_tok, dim=-1)
        if self.moe.norm_topk_prob:
            top = top / top.sum(-1, keepdim=True)
        weights = torch.zeros_like(probabilities).scatter(-1, ids, top)
        used = (weights.detach() > 0).float().flatten(0, -2).mean(0) / self.moe.num_experts_per_tok
        balance = self.moe.num_experts * (used * probabilities.flatten(0, -2).mean(0)).sum()
        return weights, 0.01 * balance + 1e-4 * logits.logsumexp(-1).square().mean()


class LayerScale(nn.Module):
    """A learned factor for each channel of what half a layer adds."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((width,), 0.01))

    def forward(self, x: Tensor) -> Tensor:
        """``[..., width]`` -> the same."""
        return x * self.scale


class Layer(nn.Module):
    """``x += attention(norm(x))``; ``x += feed_forward(norm(x))``."""

    def __init__(self, config: DecoderConfig, index: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.window = config.window(index)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.sparse = config.is_sparse(index)
        if self.sparse and config.moe is not None:
            self.mlp: nn.Module = Mixture(config.hidden_size, config.moe)
        else:
            self.mlp = SwiGLU(config.hidden_size, config.intermediate_size)
        scaled = config.layer_scale
        self.self_attn_layer_scale = LayerScale(config.hidden_size) if scaled else nn.Identity()
        self.mlp_layer_scale = LayerScale(config.hidden_size) if scaled else nn.Identity()

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], ahead: Tensor | None) -> tuple[Tensor, Tensor]:
        """Rows -> rows, and the router's loss (0 of a dense layer)."""
        mask = visible(x.shape[1], self.window, ahead, x.device)
        x = x + self.self_attn_layer_scale(self.self_attn(self.input_layernorm(x), rotation, mask)).float()
        normed = self.post_attention_layernorm(x)
        added, loss = self.mlp(normed) if self.sparse else (self.mlp(normed), x.new_zeros(()))
        return x + self.mlp_layer_scale(added).float(), loss


class DecoderStack(nn.Module):
    """Layers and a final norm. The residual rows stay float32 also under autocast, as in lluda."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Layer(config, index) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        exponents = torch.arange(0, config.head_dim, 2).float() / config.head_dim
        self.register_buffer("frequencies", 1.0 / config.rope.theta**exponents, persistent=False)

    def forward(self, x: Tensor, end: int | None = None, ahead: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Rows ``[batch, rows, hidden]`` through the layers before ``end`` -> residual rows before the final norm, and
        the sum of the routers' losses. The first ``ahead`` (int64 ``[batch]``) rows are padding, which shifts all
        positions of an example by the same number, so that none of its rows changes."""
        angles = torch.arange(x.shape[1], device=x.device)[:, None] * self.frequencies
        rotation, loss = (angles.cos(), angles.sin()), x.new_zeros(())
        for layer in list(self.layers)[:end]:
            x, added = layer(x, rotation, ahead)
            loss = loss + added
        return x, loss


class TokenDecoder(DecoderStack):
    """A stack over a table of token embeddings."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
