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
from lluda.errors import InvalidRequest
from lluda.formats.packed_bf16 import PACKED_BF16
from lluda.formats.q8_0 import Q8_0
from lluda.formats.stored_tensor import StoredTensor
from lluda.models.causal_lm import causal_lm_parameters
from lluda.models.decoder import LayerBuilder, rotary_of
from lluda.parameters import WHOLE, ParameterSpec, Share
from lluda.weights.checkpoint import open_checkpoint
from lluda.weights.parts import stored_part
from tests.conftest import TINY_MOE, TINY_QWEN3, taken
from tests.models.omni_reference import random_parameters

RANKS, ROWS = 2, 7
SHARES = [Share(rank, RANKS) for rank in range(RANKS)]
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


def part_of(checkpoint, spec: ParameterSpec, share: Share) -> torch.Tensor:
    return stored_part(checkpoint.stored(spec.name), spec, share).decode()


def layer_of(config: DecoderConfig, checkpoint, share: Share = WHOLE):
    """The first layer's attention and feed-forward, of the parts that ``share`` reads."""
    values = {spec.name: taken(BACKEND, part_of(checkpoint, spec, share), spec.role) for spec in specs_of(config)}
    return LayerBuilder(config, Parameters(values)).layer(0, "model.layers.0.")


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
    whole, slices = layer_of(config, checkpoint), [layer_of(config, checkpoint, share) for share in SHARES]
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
        parts, whole = [part_of(checkpoint, spec, share) for share in SHARES], checkpoint.tensor(spec.name)
        assert {tuple(part.shape) for part in parts} == {spec.shared(share).shape for share in SHARES}
        if spec.split == "none":
            assert all(torch.equal(part, whole) for part in parts)
        elif spec.split == "columns" and whole.dim() == 1:
            assert torch.equal(parts[0], whole) and not parts[1].any()
        else:
            assert torch.equal(torch.cat(parts, spec.axis), whole)
            assert {part.shape[spec.axis] for part in parts} == {whole.shape[spec.axis] // RANKS}


def test_what_each_tensor_of_a_decoder_is_split_by():
    splits = {(spec.name.split(".")[-2], spec.split) for spec in specs_of(MIXTURE)}
    assert splits == {
        ("embed_tokens", "rows"), ("lm_head", "rows"), ("norm", "none"), ("q_norm", "none"), ("k_norm", "none"),
        ("input_layernorm", "none"), ("post_attention_layernorm", "none"), ("gate", "none"), ("q_proj", "rows"),
        ("k_proj", "rows"), ("v_proj", "rows"), ("o_proj", "columns"), ("gate_proj", "rows"),
        ("up_proj", "rows"), ("down_proj", "columns"),
    }  # fmt: skip
    dense = {spec.name.split(".")[-2]: spec.split for spec in specs_of(DENSE) if ".mlp." in spec.name}
    assert dense == {"gate_proj": "rows", "up_proj": "rows", "down_proj": "columns"}


def spec_of(config: DecoderConfig, name: str) -> ParameterSpec:
    return next(spec for spec in specs_of(config) if spec.name.endswith(f"{name}.weight"))


def test_a_head_is_not_cut():
    """Four query heads cannot be shared by three, though their 128 rows could be by eight."""
    spec = spec_of(DENSE, "q_proj")
    with pytest.raises(InvalidRequest, match=r"4 heads of .*q_proj.* cannot be shared by 8 ranks; .* divides 4"):
        spec.part(Share(0, 8))


def test_ranks_beyond_the_key_heads_have_the_same_ones():
    """Two key heads for four ranks: of each the head that its query heads look at."""
    parts = [spec_of(DENSE, "k_proj").part(Share(rank, 4)) for rank in range(4)]
    assert [(part.start, part.stop) for part in parts] == [(0, 32), (0, 32), (32, 64), (32, 64)]
    with pytest.raises(InvalidRequest, match=r"2 heads of .*k_proj.* cannot be shared by 3 ranks"):
        spec_of(DENSE, "k_proj").part(Share(0, 3))


@pytest.mark.parametrize(
    ("columns", "cut"), [(256, 128), (1000, 512), (960, 480)], ids=["whole blocks", "unfinished last", "inside a block"]
)
def test_parts_of_a_packed_matrix_are_packed(columns, cut):
    """Rows, and columns that are cut between blocks or inside one, with escapes in every part."""
    generator = torch.Generator().manual_seed(7)
    values = torch.randn(64, columns, generator=generator).bfloat16()
    values[::2, ::50], values[1, 3] = 1e30, 0
    stored = StoredTensor(PACKED_BF16, values.shape, PACKED_BF16.encode(values))
    for axis, at in enumerate((20, cut)):
        parts = [PACKED_BF16.part(stored, axis, part) for part in (slice(0, at), slice(at, values.shape[axis]))]
        assert torch.equal(torch.cat([part.decode() for part in parts], axis), values)
        assert all(part.format is PACKED_BF16 and not list(PACKED_BF16.violations(part)) for part in parts)


def test_parts_of_q8_0_are_whole_blocks():
    values = torch.randn(4, 128, generator=torch.Generator().manual_seed(8))
    stored = StoredTensor(Q8_0, values.shape, Q8_0.encode(values))
    for axis, size in enumerate(values.shape):
        parts = [Q8_0.part(stored, axis, slice(start, start + size // 2)) for start in (0, size // 2)]
        assert torch.equal(torch.cat([part.decode() for part in parts], axis), stored.decode())
    assert Q8_0.part(stored, 0, slice(1, 3)).data.data_ptr() == stored.data.data_ptr() + stored.nbytes // 4
    spec = ParameterSpec("o_proj.weight", (4, 128), "matrix", split="columns", unit=16)
    with pytest.raises(InvalidRequest, match=r"Q8_0 columns 0 to 16 .* inside a block, so 8 ranks cannot share it"):
        stored_part(stored, spec, Share(0, 8))
