"""Positions of three rows: which frequency turns with which, against transformers' rotary module of the thinker."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from lluda.backends import select_backend
from lluda.config.decoder import read_decoder
from lluda.config.reader import ConfigReader
from lluda.models.decoder import rotary_of

TEXT: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 99,
    "intermediate_size": 96, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48,
}  # fmt: skip


@pytest.mark.parametrize(
    ("head_dim", "settings"),
    [
        (128, {"mrope_section": [24, 20, 20], "mrope_interleaved": True}),
        (16, {"mrope_section": [4, 2, 2], "interleaved": True}),
        (16, {"mrope_section": [8, 0, 0]}),
        (128, {}),
        (16, {}),
        (22, {}),
        (160, {}),
    ],
)
def test_frequencies_turn_with_the_axes_of_transformers(head_dim: int, settings: dict[str, Any]) -> None:
    """Where a config leaves mrope_section out, that of the released model is cut to the frequencies there are."""
    from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeTextConfig
    from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeThinkerTextRotaryEmbedding

    raw = TEXT | {"head_dim": head_dim, "rope_scaling": {"rope_type": "default", **settings}}
    module = Qwen3OmniMoeThinkerTextRotaryEmbedding(Qwen3OmniMoeTextConfig(**copy.deepcopy(raw)))
    config = read_decoder(ConfigReader(raw, "config.json"), "qwen3_omni_moe_text")
    backend = select_backend("reference", "cpu", "f32")
    rotary = rotary_of(config, backend.device)
    positions = torch.randint(0, 500, (3, 40), generator=torch.Generator().manual_seed(0)).float()
    for ours, theirs in zip(
        backend.rotary_table(positions, rotary), module(torch.zeros(1), positions[:, None]), strict=True
    ):
        assert torch.equal(ours, theirs[0, :, : head_dim // 2])
