"""The optimiser of every stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


def adamw(modules: Sequence[nn.Module], rate: float, betas: tuple[float, float], decay: float) -> torch.optim.AdamW:
    """One optimiser over modules; matrices and kernels decay, vectors do not. On a GPU its rate is a tensor, which a
    captured step reads anew each time."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    on_gpu = parameters[0].is_cuda
    groups: list[dict[str, Any]] = [
        {"params": [one for one in parameters if one.dim() > 1], "weight_decay": decay},
        {"params": [one for one in parameters if one.dim() <= 1], "weight_decay": 0.0},
    ]
    first = torch.tensor(rate, device=parameters[0].device) if on_gpu else rate
    for group in groups:
        group["lr"] = first.clone() if isinstance(first, torch.Tensor) else first
    return torch.optim.AdamW(groups, lr=first, betas=betas, fused=on_gpu, capturable=on_gpu)


def clip(modules: Sequence[nn.Module], norm: float) -> None:
    """Bound the gradients' length."""
    nn.utils.clip_grad_norm_([one for module in modules for one in module.parameters()], norm, foreach=True)
