"""Blocks in two slices, as a tensor-parallel group would hold them: the sum of their branches is the whole block's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from lluda.backends.backend import CacheLayout, Precision
from lluda.backends.batch import Segment
from lluda.backends.blocks import MixtureBlock
from lluda.backends.executor.decoder import Step
from lluda.backends.reference.backend import ReferenceBackend
from lluda.backends.weight import Parameters
from lluda.config.decoder import DecoderConfig
from lluda.config.model import ModelConfig
from lluda.errors import CorruptFile, InvalidRequest
from lluda.models.causal_lm import causal_lm_parameters
from lluda.models.decoder import LayerBuilder, rotary_of
from lluda.parameters import ParameterSpec
from lluda.weights.checkpoint import open_checkpoint
from lluda.weights.parts import read_part
from tests.conftest import TINY_MOE, TINY_QWEN3, taken
from tests.models.omni_reference import random_parameters

RANKS, ROWS = 2, 7
DENSE = ModelConfig.from_hf(TINY_QWEN3 | {"attention_bias": True}).text
MIXTURE = ModelConfig.from_hf(TINY_MOE).text
SHARED = replace(MIXTURE, moe=replace(MIXTURE.moe, shared_expert_intermediate_size=40))
BACKEND = ReferenceBackend(torch.device("cpu"), Precision.of("f32"))
CONFIGS = pytest.mark.parametrize("config", [DENSE, MIXTURE, SHARED], ids=["dense", "mixture", "shared expert"])


class Cache:
    """Keys and values of one layer."""

    length = 0

    def __init__(self, kv_heads: int, head_dim: int) -> None:
        self._buffers = BACKEND.new_cache(CacheLayout(1, kv_heads, head_dim, torch.float32), ROWS)

    def reserve(self, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        assert rows <= ROWS
        return self._buffers


@pytest.fixture
def checkpoint_of(tmp_path):
    def write(config: DecoderConfig):
        save_file(random_parameters(specs_of(config)), tmp_path / "model.safetensors")
        return open_checkpoint(tmp_path)

    return write


def specs_of(config: DecoderConfig) -> list[ParameterSpec]:
    return [spec for spec in causal_lm_parameters(config) if not spec.tied_to]


def layer_of(config: DecoderConfig, checkpoint, rank: int = 0, ranks: int = 1):
    """The first layer's attention and feed-forward, of the parts that ``rank`` reads."""
    parts = {spec.name: (spec, read_part(checkpoint, spec, rank, ranks)) for spec in specs_of(config)}
    values = {name: taken(BACKEND, part, spec.role) for name, (spec, part) in parts.items() if part is not None}
    return LayerBuilder(config, Parameters(values), rank, ranks).layer(0, "model.layers.0.")


def attention_branch(config: DecoderConfig, block, x: torch.Tensor) -> torch.Tensor:
    cache = Cache(block.k_proj.weight.out_features // block.head_dim, block.head_dim)
    table = BACKEND.rotary_table(torch.arange(ROWS), rotary_of(config, BACKEND.device))
    return BACKEND.attention_branch(x, block, 0, Step(*table, [Segment(0, ROWS, cache)]))


def feed_forward_branch(block, x: torch.Tensor) -> torch.Tensor:
    return BACKEND.mixture_branch(x, block) if isinstance(block, MixtureBlock) else BACKEND.swiglu_branch(x, block)


@CONFIGS
@torch.inference_mode()
def test_the_branches_of_two_slices_add_up_to_the_block(config, checkpoint_of):
    checkpoint = checkpoint_of(config)
    whole, slices = layer_of(config, checkpoint), [layer_of(config, checkpoint, rank, RANKS) for rank in range(RANKS)]
    x = torch.randn(ROWS, config.hidden_size, generator=torch.Generator().manual_seed(1))
    attention = [attention_branch(config, attention, x) for attention, _ in slices]
    torch.testing.assert_close(sum(attention), attention_branch(config, whole[0], x), rtol=1e-5, atol=1e-6)
    assert (attention[0] - attention[1]).abs().max() > 0.01  # each has a part of its own
    feed_forward = [feed_forward_branch(block, x) for _, block in slices]
    torch.testing.assert_close(sum(feed_forward), feed_forward_branch(whole[1], x), rtol=1e-5, atol=1e-6)
    assert all(part.abs().max() > 0.01 for part in feed_forward)


@CONFIGS
@torch.inference_mode()
def test_a_block_is_its_rows_and_its_branch(config, checkpoint_of):
    _, feed_forward = layer_of(config, checkpoint_of(config))
    x = torch.randn(ROWS, config.hidden_size, generator=torch.Generator().manual_seed(2))
    block = BACKEND.mixture_block if isinstance(feed_forward, MixtureBlock) else BACKEND.swiglu_block
    torch.testing.assert_close(block(x.clone(), feed_forward), x + feed_forward_branch(feed_forward, x))


@CONFIGS
def test_the_parts_of_a_tensor_are_all_of_it(config, checkpoint_of):
    checkpoint = checkpoint_of(config)
    for spec in specs_of(config):
        parts = [read_part(checkpoint, spec, rank, RANKS) for rank in range(RANKS)]
        found, whole = [part for part in parts if part is not None], checkpoint.tensor(spec.name)
        if spec.split == "experts":
            assert len(found) == 1 and torch.equal(found[0], whole)
        elif spec.split == "none":
            assert all(torch.equal(part, whole) for part in found) and len(found) == RANKS
        elif spec.split == "columns" and whole.dim() == 1:
            assert torch.equal(parts[0], whole) and not parts[1].any()
        else:
            axis = 1 if spec.split == "columns" else 0
            assert torch.equal(torch.cat(found, axis), whole)
            assert {part.shape[axis] for part in found} == {whole.shape[axis] // RANKS}


def test_what_each_tensor_of_a_decoder_is_split_by():
    splits = {(spec.name.split(".")[-2], spec.split) for spec in specs_of(MIXTURE)}
    assert splits == {
        ("embed_tokens", "rows"), ("lm_head", "rows"), ("norm", "none"), ("q_norm", "none"), ("k_norm", "none"),
        ("input_layernorm", "none"), ("post_attention_layernorm", "none"), ("gate", "none"), ("q_proj", "rows"),
        ("k_proj", "rows"), ("v_proj", "rows"), ("o_proj", "columns"), ("gate_proj", "experts"),
        ("up_proj", "experts"), ("down_proj", "experts"),
    }  # fmt: skip
    dense = {spec.name.split(".")[-2]: spec.split for spec in specs_of(DENSE) if ".mlp." in spec.name}
    assert dense == {"gate_proj": "rows", "up_proj": "rows", "down_proj": "columns"}


def test_a_head_is_not_cut(checkpoint_of):
    """Two key heads cannot be shared by four, though their 64 rows could."""
    checkpoint = checkpoint_of(DENSE)
    spec = next(spec for spec in specs_of(DENSE) if spec.name.endswith("k_proj.weight"))
    with pytest.raises(InvalidRequest, match=r"2 heads of .*k_proj.* cannot be shared by 4 devices; .* divides 2"):
        read_part(checkpoint, spec, 0, 4)
    with pytest.raises(InvalidRequest, match="8 experts cannot be shared by 3 devices"):
        ParameterSpec("e", (1, 1), "matrix", split="experts", expert=(0, 8)).part(0, 3)


def test_a_part_of_what_is_not_there_or_of_another_shape(checkpoint_of):
    checkpoint = checkpoint_of(DENSE)
    with pytest.raises(CorruptFile, match=r"missing tensor model\.nothing"):
        read_part(checkpoint, ParameterSpec("model.nothing", (2, 2), "matrix", split="rows"), 0, 2)
    with pytest.raises(CorruptFile, match=r"shape of model\.norm\.weight"):
        read_part(checkpoint, ParameterSpec("model.norm.weight", (2,), "norm"), 0, 2)
