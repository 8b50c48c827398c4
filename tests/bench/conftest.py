"""Small checkpoints on disk for the bench: no tokenizer, for it needs none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lluda.config.model import ModelConfig
from lluda.convert.synth import synthesize
from lluda.models.causal_lm import causal_lm_parameters

# What released configs spell out and mistralrs insists on.
RELEASED_KEYS = {"max_window_layers": 3, "sliding_window": None, "use_sliding_window": False, "attention_bias": False}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a checkpoint of a config."""

    def make(raw: dict[str, Any], dtype: str = "BF16") -> Path:
        folder = tmp_path_factory.mktemp("checkpoint") / str(raw["model_type"])
        config = RELEASED_KEYS | raw
        synthesize(causal_lm_parameters(ModelConfig.from_hf(config).text), folder, config=config, dtype=dtype)
        return folder

    return make
