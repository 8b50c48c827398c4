"""What the host does between the layers of a step: it has experts run on another backend, adds hidden states of
pictures, and tells an observer."""

from __future__ import annotations

import torch
from torch import Tensor

from lluda.backends.batch import DeepStack
from lluda.backends.blocks import MixtureBlock
from lluda.backends.components import DecoderLayers, Observer, StageObserver


class BetweenLayers:
    """Of a step through ``layers``, whose rows may come in several parts, one behind the other."""

    def __init__(
        self, layers: DecoderLayers, observe: Observer | None = None, deepstack: DeepStack | None = None
    ) -> None:
        self._observe, self._deepstack = observe, deepstack
        self._experts, count = layers.experts, len(layers.blocks)
        self._mixtures = {
            index: block
            for index, (_, block) in enumerate(layers.blocks)
            if layers.experts is not None and isinstance(block, MixtureBlock)
        }
        stages = [f"layers.{index}" for index in range(count)]
        if isinstance(observe, StageObserver):
            seen = [index for index, stage in enumerate(stages) if stage == observe.stage]
        else:
            seen = list(range(count)) if observe else []
        added = range(min(count, len(deepstack.embeddings))) if deepstack is not None else range(0)
        self._seen: dict[int, list[Tensor]] = {index: [] for index in seen}
        self.layers = sorted({*seen, *added, *self._mixtures})
        """Those behind which the host has something to do."""

    def change(self, layer: int, x: Tensor, first: int) -> bool:
        """Behind ``layer``, of the rows from ``first`` on; whether x was changed."""
        mixture = self._mixtures.get(layer)
        if mixture is not None:
            assert self._experts is not None, "blocks are kept for experts elsewhere"
            x.copy_(self._experts(x, mixture))
        added = self._add(layer, x, first)
        if layer in self._seen:
            self._seen[layer].append(x.clone())
        return added or mixture is not None

    def tell(self) -> None:
        """The observer, when all rows are through."""
        for layer, parts in self._seen.items():
            assert self._observe is not None, "layers are seen for an observer"
            self._observe(f"layers.{layer}", torch.cat(parts))

    def _add(self, layer: int, x: Tensor, first: int) -> bool:
        if self._deepstack is None or layer >= len(self._deepstack.embeddings):
            return False
        rows = self._deepstack.rows - first
        here = (rows >= 0) & (rows < len(x))
        x[rows[here]] += self._deepstack.embeddings[layer][here].to(x.dtype)
        return bool(here.any())
