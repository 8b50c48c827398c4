"""lluda itself as one of the implementations to compare: a decoder without a tokenizer, run step by step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lluda.backends.blocks import Segment
from lluda.config.model import resolve_dtype
from lluda.engine.kv_cache import KVCache
from lluda.engine.loading import LoadOptions, ModelFiles, load_network
from lluda.evaluation.trace import Observe, Step
from lluda.weights.loader import Progress


class LludaNetwork:
    """Implements ``Implementation``. A checkpoint without a tokenizer (from ``lluda synth``) will do."""

    name = "lluda"

    def __init__(self, files: ModelFiles, options: LoadOptions, progress: Progress | None = None) -> None:
        """Load the weights. Errors as ``lluda.load``."""
        self.dtype: str = resolve_dtype(options.dtype, files.config.dtype)
        self.network, self.report = load_network(files, options, progress)
        self.backend = self.network.backend
        self.cache_options = files.cache_options(options, self.dtype)

    def start(self, observe: Observe | None = None) -> Step:
        """See ``Implementation.start``."""
        cache = KVCache(self.network.config, self.cache_options, self.backend.device)

        @torch.inference_mode()
        def step(ids: Sequence[int]) -> Tensor:
            rows, device = len(ids), self.backend.device
            positions = torch.arange(cache.length, cache.length + rows, device=device)
            logits = self.network(
                torch.tensor(list(ids), device=device), positions, [Segment(0, rows, cache)], None, observe
            )
            cache.advance(rows)
            return logits

        return step
