"""transformers, driven through its own forward pass and cache, in BF16 with SDPA attention."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, DynamicCache

from lluda.bench.job import Job
from lluda.bench.session import EngineInfo, Session, SteppingSession


def open_session(job: Job) -> Session:
    """Load the folder (or, through transformers' own reader, the .gguf file)."""
    return TransformersSession(job)


class TransformersSession(SteppingSession):
    """A greedy loop over ``model.forward``: no ``generate``, whose bookkeeping would be measured too."""

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(job.threads)
        transformers.utils.logging.disable_progress_bar()
        path = Path(job.model)
        source: dict[str, Any] = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
        self._model = AutoModelForCausalLM.from_pretrained(
            path.parent if source else path, dtype=torch.bfloat16, attn_implementation="sdpa", **source
        ).to(job.device)
        self._device = job.device
        self._cache = DynamicCache(config=self._model.config)

    @property
    def info(self) -> EngineInfo:
        """See ``Session``."""
        return EngineInfo("BF16", 2.0, f"BF16, sdpa, dynamic cache, on {self._device}")

    def start(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """See ``SteppingSession``."""
        self._cache = DynamicCache(config=self._model.config)
        return self._forward([list(prompt) for prompt in prompts])

    def step(self, tokens: list[int]) -> list[int]:
        """See ``SteppingSession``."""
        return self._forward([[token] for token in tokens])

    @torch.inference_mode()
    def _forward(self, ids: list[list[int]]) -> list[int]:
        rows = torch.tensor(ids, device=self._device)
        out = self._model(input_ids=rows, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        chosen: list[int] = out.logits[:, -1].argmax(-1).tolist()
        return chosen
