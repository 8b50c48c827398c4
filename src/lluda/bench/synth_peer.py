"""transformers on the same device, from the same config, with random weights: its forward pass and cache, greedily."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from lluda.bench.synth import SynthSettings

_STEPS = 32


def peer_samples(config_dir: Path, settings: SynthSettings) -> dict[str, tuple[str, list[float]]]:
    """By test its unit and samples, the first a warm-up's. MissingDependency: transformers is not installed."""
    from lluda.evaluation.transformers_loading import require_transformers

    model = _model(require_transformers(), config_dir, settings.device)
    found = {f"tg{settings.generate}": ("tok/s", list(_decode(model, settings)))}
    for rows in settings.prompts:
        found[f"pp{rows}"] = ("tok/s", list(_prefill(model, rows, settings)))
    return found


def _model(transformers: Any, config_dir: Path, device: str) -> Any:
    """A text model, or an Omni model's thinker."""
    config = transformers.AutoConfig.from_pretrained(config_dir, local_files_only=True)
    if config.model_type == "qwen3_omni_moe":
        from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as models

        kind, config = models.Qwen3OmniMoeThinkerForConditionalGeneration, config.thinker_config
    else:
        kind = transformers.AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    make = getattr(kind, "_from_config", None) or kind.from_config
    with no_init_weights(), torch.device(device):
        model = make(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    for parameter in model.parameters():
        parameter.data.normal_(0.0, 0.02)
    return model.eval().requires_grad_(False)


@torch.inference_mode()
def _forward(model: Any, ids: list[int], cache: Any, device: str) -> int:
    rows = torch.tensor([ids], device=device)
    out = model(input_ids=rows, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return int(out.logits[0, -1].argmax())


def _decode(model: Any, settings: SynthSettings) -> Iterator[float]:
    from transformers import DynamicCache

    for _ in range(settings.repeat + 1):
        cache = DynamicCache()
        token = _forward(model, list(range(128)), cache, settings.device)
        started = time.perf_counter()
        for _ in range(_STEPS):
            token = _forward(model, [token], cache, settings.device)
        yield _STEPS / (time.perf_counter() - started)


def _prefill(model: Any, rows: int, settings: SynthSettings) -> Iterator[float]:
    from transformers import DynamicCache

    prompt = [7 * row % 1000 for row in range(rows)]
    for _ in range(settings.repeat + 1):
        started = time.perf_counter()
        _forward(model, prompt, DynamicCache(), settings.device)
        yield rows / (time.perf_counter() - started)
