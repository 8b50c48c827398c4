"""lluda itself as one of the implementations to compare: a decoder without a tokenizer, run step by step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lluda.backends import select_backend
from lluda.backends.blocks import Segment
from lluda.config import resolve_dtype
from lluda.engine.kv_cache import KVCache
from lluda.engine.model import LoadOptions, ModelFiles
from lluda.evaluation.trace import Observe, Step
from lluda.models.causal_lm import CausalLM, causal_lm_parameters
from lluda.weights.checkpoint import open_checkpoint
from lluda.weights.loader import Progress, load_tensors


class LludaNetwork:
    """Implements ``Implementation``. A checkpoint without a tokenizer (from ``lluda synth``) will do."""

    name = "lluda"

    def __init__(self, files: ModelFiles, options: LoadOptions, progress: Progress | None = None) -> None:
        """Load the weights. Errors as ``lluda.load``."""
        files.plan(options).require_fit()
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        text = files.config.text
        self.dtype: str = resolve_dtype(options.dtype, files.config.dtype)
        self.backend = select_backend(options.backend, options.device, self.dtype)
        tensors, self.report = load_tensors(
            open_checkpoint(files.path),
            causal_lm_parameters(text),
            dtype=self.backend.precision.compute,
            allow_unexpected=options.allow_unexpected,
            check=options.check_tensors,
            progress=progress,
        )
        self.network = CausalLM(text, tensors, self.backend)
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
