"""The optimiser of every stage."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


def adamw(modules: Sequence[nn.Module], rate: float, betas: tuple[float, float], decay: float) -> torch.optim.AdamW:
    """One optimiser over modules; matrices and kernels decay, vectors do not."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    groups = [
        {"params": [one for one in parameters if one.dim() > 1], "weight_decay": decay},
        {"params": [one for one in parameters if one.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=betas, fused=parameters[0].is_cuda)


def clip(modules: Sequence[nn.Module], norm: float) -> None:
    """Bound the gradients' length."""
    nn.utils.clip_grad_norm_([one for module in modules for one in module.parameters()], norm, foreach=True)
