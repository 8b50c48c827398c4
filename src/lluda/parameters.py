"""What a parameter is before it has values: the vocabulary between models, the loader, synth and the memory plan.

Importable by all; imports nothing of ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

Role = Literal["matrix", "embedding", "router", "norm", "bias", "scale", "kernel"]
"""How a parameter is used: ``matrix`` multiplies rows (may be packed or quantised), ``embedding`` is looked up by row,
``router`` chooses experts (stays unrounded), ``norm`` scales a normalised row (synth draws it around 1), ``bias`` is
added, ``scale`` is any other vector, ``kernel`` belongs to a convolution."""


@dataclass(frozen=True, slots=True)
class ParameterSpec:
    """One tensor a model reads: its name in the checkpoint, its shape (torch order) and its role.

    ``tied_to`` names the tensor whose values it shares when the config ties them; such a tensor may be absent from the
    checkpoint, or stored twice (the released Qwen3-0.6B stores ``lm_head.weight`` beside the identical embedding).
    """

    name: str
    shape: tuple[int, ...]
    role: Role
    tied_to: str | None = None

    @property
    def elements(self) -> int:
        """Number of values."""
        return prod(self.shape)
