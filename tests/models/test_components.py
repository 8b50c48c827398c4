"""The table of components, held against the released configs and every tensor of an Omni checkpoint."""

from __future__ import annotations

from functools import reduce

import pytest

from lluda.config.model import ModelConfig
from lluda.models.build import all_parameters
from lluda.models.components import COMPONENTS, TEXT, component_and_part, component_of


@pytest.fixture(scope="module")
def released(released_configs):
    from lluda.files.json_file import read_json_object

    return read_json_object(released_configs / "Qwen3-Omni-30B-A3B-Instruct" / "config.json")


def test_every_section_is_one_of_the_released_config(released):
    for component in COMPONENTS:
        section = reduce(lambda found, key: found[key], component.section.split("."), released)
        assert "hidden_size" in section or "d_model" in section, component.name


def test_every_tensor_belongs_to_the_component_of_its_longest_prefix(released):
    found = {component_of(spec.name) for spec in all_parameters(ModelConfig.from_hf(released))}
    assert found == set(COMPONENTS)
    assert component_of("talker.code_predictor.lm_head.0.weight").name == "code_predictor"
    assert component_of("talker.codec_head.weight").name == "talker"
    assert component_of("model.layers.0.mlp.up_proj.weight") is TEXT


@pytest.mark.parametrize(
    ("tensor", "listed"),
    [
        ("thinker.model.layers.3.mlp.experts.17.up_proj.weight", "thinker / routed experts"),
        ("thinker.model.layers.3.mlp.gate.weight", "thinker / routers"),
        ("thinker.visual.blocks.0.attn.qkv.weight", "thinker.visual / attention"),
        ("talker.code_predictor.lm_head.3.weight", "talker.code_predictor / lm_head"),
        ("talker.model.layers.0.mlp.shared_expert_gate.weight", "talker / shared experts"),
        ("code2wav.code_embedding.weight", "code2wav / other"),
        ("model.embed_tokens.weight", "text / embed_tokens"),
        ("model.layers.0.mlp.gate_proj.weight", "text / mlp"),
    ],
)
def test_listings_name_the_module_and_the_part(tensor, listed):
    assert component_and_part(tensor) == listed
