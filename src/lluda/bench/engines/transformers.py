"""transformers, driven through its own forward pass and cache, in BF16 with SDPA attention.

With random weights an Omni model's is its whole thinker; of a checkpoint, the thinker without its encoders.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache
from transformers.initialization import no_init_weights

from lluda.bench.process.job import Job
from lluda.bench.session import EngineInfo, Session, SteppingSession
from lluda.evaluation.transformers_components import TransformersComponents
from lluda.weights.checkpoint import is_gguf


def open_session(job: Job) -> Session:
    """Load the folder (or, through transformers' own reader, the .gguf file); of an Omni model, its thinker."""
    torch.set_num_threads(job.threads)
    transformers.utils.logging.disable_progress_bar()
    path = Path(job.model)
    if job.random:
        return TransformersSession(job, _random_model(path, job.device))
    if path.is_dir() and AutoConfig.from_pretrained(path, local_files_only=True).model_type == "qwen3_omni_moe":
        return ThinkerSession(job, TransformersComponents(path, "bf16", float64=False).decoder().module)
    source: dict[str, Any] = {"gguf_file": path.name} if is_gguf(path) else {}
    model = AutoModelForCausalLM.from_pretrained(
        path.parent if source else path, dtype=torch.bfloat16, attn_implementation="sdpa", **source
    )
    return TransformersSession(job, model)


def _random_model(path: Path, device: str) -> Any:
    config = AutoConfig.from_pretrained(path, local_files_only=True)
    make = AutoModelForCausalLM.from_config
    if config.model_type == "qwen3_omni_moe":
        from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as models

        make, config = models.Qwen3OmniMoeThinkerForConditionalGeneration._from_config, config.thinker_config
    with no_init_weights(), torch.device(device):
        model = make(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    for parameter in model.parameters():
        parameter.data.normal_(0.0, 0.02)
    return model.eval().requires_grad_(False)


class TransformersSession(SteppingSession):
    """A greedy loop over ``model.forward``: no ``generate``, whose bookkeeping would be measured too."""

    def __init__(self, job: Job, model: Any) -> None:
        self._model, self._device = model.to(job.device), job.device
        self._cache = DynamicCache(config=self._decoder.config)

    @property
    def info(self) -> EngineInfo:
        """See ``Session``."""
        return EngineInfo("BF16", 2.0, f"BF16, sdpa, dynamic cache, on {self._device}")

    def start(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """See ``SteppingSession``."""
        self._cache = DynamicCache(config=self._decoder.config)
        return self._greedy([list(prompt) for prompt in prompts])

    def step(self, tokens: list[int]) -> list[int]:
        """See ``SteppingSession``."""
        return self._greedy([[token] for token in tokens])

    @property
    def _decoder(self) -> Any:
        return self._model

    @torch.inference_mode()
    def _greedy(self, ids: list[list[int]]) -> list[int]:
        logits = self._forward(torch.tensor(ids, device=self._device))
        chosen: list[int] = logits[:, -1].argmax(-1).tolist()
        return chosen

    def _forward(self, rows: Tensor) -> Tensor:
        out = self._model(input_ids=rows, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        logits: Tensor = out.logits
        return logits


class ThinkerSession(TransformersSession):
    """The thinker without its encoders."""

    @property
    def _decoder(self) -> Any:
        return self._model["decoder"]

    def _forward(self, rows: Tensor) -> Tensor:
        out = self._decoder(input_ids=rows, past_key_values=self._cache, use_cache=True)
        logits: Tensor = self._model["head"](out.last_hidden_state[:, -1:])
        return logits
