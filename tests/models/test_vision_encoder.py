"""The vision encoder against transformers: reduced in depth and width in the fast tests, whole in the slow ones."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from lluda.backends import select_backend
from lluda.config.reader import ConfigReader
from lluda.config.vision import read_vision_encoder
from lluda.errors import CorruptFile, UnsupportedModel
from lluda.models import vision_encoder
from lluda.models.vision_encoder import PREFIX, VisionEncoder, bilinear_corners, vision_encoder_parameters
from tests.conftest import RELEASED_CONFIGS
from tests.models.omni_reference import load_reference, placed_parameters, random_parameters

ROOT = Path(__file__).parents[2]
RELEASED = RELEASED_CONFIGS / "Qwen3-Omni-30B-A3B-Instruct"

SMALL = {
    "model_type": "qwen3_omni_moe_vision_encoder",
    "depth": 4,
    "hidden_size": 72,
    "intermediate_size": 136,
    "num_heads": 3,
    "patch_size": 4,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "out_hidden_size": 40,
    "num_position_embeddings": 49,
    "deepstack_visual_indexes": [0, 1, 3],
    "hidden_act": "gelu_pytorch_tanh",
}
# Five pictures (one token, wide, tall, square, larger than the table) and a video of three slices.
GRIDS = [(1, 2, 2), (1, 2, 30), (1, 24, 4), (1, 8, 8), (1, 12, 18), (3, 6, 4)]

WHOLE_GRIDS = [(1, 4, 4), (1, 2, 60), (1, 14, 10), (1, 20, 20), (1, 32, 24), (2, 10, 16)]
"""The same at the released size."""


def config(**changes):
    return read_vision_encoder(ConfigReader(SMALL | changes, "config.json: vision_config"))


def patches_of(config, grids, seed=1):
    count = sum(t * h * w for t, h, w in grids)
    values = torch.randint(0, 256, (count, config.patch_values), generator=torch.Generator().manual_seed(seed))
    return values.float() / 127.5 - 1


def reference_of(config, tensors):
    from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeVisionEncoderConfig
    from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeVisionEncoder

    theirs = {name: value for name, value in asdict(config).items() if name != "rope_theta"}
    theirs["deepstack_visual_indexes"] = list(config.deepstack_visual_indexes)
    return load_reference(Qwen3OmniMoeVisionEncoder(Qwen3OmniMoeVisionEncoderConfig(**theirs)), tensors, PREFIX)


def ours(config, tensors, dtype="f32", backend="reference"):
    chosen = select_backend(backend, "cpu", dtype)
    return VisionEncoder(config, placed_parameters(vision_encoder_parameters(config), tensors, chosen), chosen)


@torch.inference_mode()
def theirs(module, patches, grids):
    out = module(patches, grid_thw=torch.tensor(grids))
    return [out.pooler_output, *out.deepstack_features]


@torch.inference_mode()
def rows_of(encoder, patches, grids, observe=None):
    out = encoder(patches, grids, observe)
    return [out.embeddings, *out.deepstack]


def relative_error(found, expected):
    return ((found.double() - expected.double()).abs().max() / expected.double().abs().max()).item()


def rounded(module):
    """In BF16 as from_pretrained gives it, which leaves the frequencies in float32."""
    frequencies = module.rotary_pos_emb.inv_freq.clone()
    module.bfloat16().rotary_pos_emb.inv_freq = frequencies
    return module


def distance_ratios(found, other, truth):
    """Of the root mean square distances to the truth, for each output."""
    pairs = zip(zip(found, other, strict=True), truth, strict=True)
    distances = [[(rows.double() - exact).square().mean().sqrt().item() for rows in pair] for pair, exact in pairs]
    return [mine / theirs for mine, theirs in distances]


@pytest.fixture(scope="module")
def tensors():
    return random_parameters(vision_encoder_parameters(config()))


@pytest.fixture(scope="module")
def reference(tensors):
    return reference_of(config(), tensors)


def released():
    return read_vision_encoder(
        ConfigReader(released_json("config.json")["thinker_config"]["vision_config"], "config.json")
    )


def released_json(name):
    return json.loads((RELEASED / name).read_text())


def test_names_and_shapes_are_the_checkpoints():
    """Every thinker.visual name of the released checkpoint, and no other; the sum is spec section 1's."""
    specs = list(vision_encoder_parameters(released()))
    names = released_json("model.safetensors.index.json")["weight_map"]
    assert {spec.name for spec in specs} == {name for name in names if name.startswith(PREFIX)}
    assert sum(spec.elements for spec in specs) == 538_631_408


@pytest.mark.parametrize("grid", GRIDS)
def test_float32_equals_transformers(grid, tensors, reference):
    patches = patches_of(config(), [grid])
    found = rows_of(ours(config(), tensors), patches, [grid])
    for mine, expected in zip(found, theirs(reference, patches, [grid]), strict=True):
        assert mine.shape == expected.shape
        assert relative_error(mine, expected) < 1e-5


def test_a_batch_equals_transformers_and_single_runs(tensors, reference, monkeypatch):
    monkeypatch.setattr(vision_encoder, "GROUP_PATCHES", 100)
    patches = patches_of(config(), GRIDS)
    encoder = ours(config(), tensors)
    found = rows_of(encoder, patches, GRIDS)
    for mine, expected in zip(found, theirs(reference, patches, GRIDS), strict=True):
        assert relative_error(mine, expected) < 1e-5
    start = 0
    for t, h, w in GRIDS:
        single = rows_of(encoder, patches[start : start + t * h * w], [(t, h, w)])
        for mine, alone in zip(found, single, strict=True):
            torch.testing.assert_close(mine[start // 4 : (start + t * h * w) // 4], alone, rtol=1e-4, atol=1e-5)
        start += t * h * w


def test_slices_of_a_video_are_pictures_of_their_own(tensors):
    encoder, patches = ours(config(), tensors), patches_of(config(), [(3, 6, 4)])
    video = rows_of(encoder, patches, [(3, 6, 4)])
    pictures = rows_of(encoder, patches, [(1, 6, 4)] * 3)
    for mine, alone in zip(video, pictures, strict=True):
        assert torch.equal(mine, alone)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_bf16_is_nearer_to_float64_than_transformers(backend, tensors):
    patches = patches_of(config(), GRIDS)
    truth = rows_of(ours(config(), tensors, "f64"), patches, GRIDS)
    found = rows_of(ours(config(), tensors, "bf16", backend), patches, GRIDS)
    other = theirs(rounded(reference_of(config(), tensors)), patches, GRIDS)
    ratios = distance_ratios(found, other, truth)
    assert max(ratios) <= 1, ratios


def test_float64_differs_from_float32_by_rounding_alone(tensors):
    patches = patches_of(config(), GRIDS)
    exact = rows_of(ours(config(), tensors, "f64"), patches, GRIDS)
    for mine, other in zip(rows_of(ours(config(), tensors), patches, GRIDS), exact, strict=True):
        assert 0 < relative_error(mine, other) < 1e-5


def test_the_observer_sees_every_stage(tensors):
    observed: dict[str, torch.Size] = {}
    rows_of(
        ours(config(), tensors),
        patches_of(config(), [(1, 4, 6)]),
        [(1, 4, 6)],
        lambda name, x: observed.update({name: x.shape}),
    )
    assert list(observed) == [
        "patches",
        *(f"layers.{i}" for i in range(4)),
        "output",
        *(f"deepstack.{i}" for i in range(3)),
    ]
    assert observed["layers.3"] == (24, 72)
    assert observed["output"] == observed["deepstack.2"] == (6, 40)


@pytest.mark.parametrize("sides", [(1, 1), (2, 2), (3, 50), (48, 48), (100, 7)])
def test_positions_are_resampled_with_aligned_corners(sides):
    """Against torch's own resampling of the same table."""
    table = torch.randn(48, 48, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    placed = torch.cartesian_prod(*(torch.arange(side) for side in sides))
    corners = bilinear_corners(placed, torch.tensor([sides]).expand(len(placed), 2), 48)
    found = sum(table.flatten(0, 1)[ids] * weights[:, None] for ids, weights in corners)
    expected = torch.nn.functional.interpolate(table.permute(2, 0, 1)[None], sides, mode="bilinear", align_corners=True)
    torch.testing.assert_close(found.view(*sides, 5), expected[0].permute(1, 2, 0))


@pytest.mark.parametrize(
    ("changes", "error", "word"),
    [
        ({"hidden_act": "silu"}, UnsupportedModel, "hidden_act"),
        ({"hidden_size": 74}, CorruptFile, "num_heads"),
        ({"num_position_embeddings": 50}, CorruptFile, "square"),
        ({"deepstack_visual_indexes": [1, 0]}, CorruptFile, "ascend"),
        ({"deepstack_visual_indexes": [4]}, CorruptFile, "deepstack_visual_indexes"),
        ({"in_chans": 1}, CorruptFile, "in_chans"),
        ({"apply_vit_abs_pos_embed": False}, UnsupportedModel, "apply_vit_abs_pos_embed"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}}, UnsupportedModel, "yarn"),
        ({"window_size": 7}, UnsupportedModel, "window_size"),
    ],
)
def test_a_config_outside_its_rules_is_refused(changes, error, word):
    with pytest.raises(error, match=word):
        config(**changes)


@pytest.mark.slow
def test_the_whole_released_encoder_in_float32():
    """All 27 layers at true widths: five pictures and a video."""
    tensors = random_parameters(vision_encoder_parameters(released()))
    patches = patches_of(released(), WHOLE_GRIDS)
    found = rows_of(ours(released(), tensors), patches, WHOLE_GRIDS)
    others = theirs(reference_of(released(), tensors), patches, WHOLE_GRIDS)
    errors = [relative_error(mine, other) for mine, other in zip(found, others, strict=True)]
    assert max(errors) <= 1e-4, errors


@pytest.mark.slow
def test_the_whole_released_encoder_in_bf16():
    """All 27 layers at true widths: nearer to float64 than transformers."""
    tensors = random_parameters(vision_encoder_parameters(released()))
    grids = [(1, 14, 10), (2, 4, 6)]
    patches = patches_of(released(), grids)
    found = rows_of(ours(released(), tensors, "bf16"), patches, grids)
    other = theirs(rounded(reference_of(released(), tensors)), patches, grids)
    ratios = distance_ratios(found, other, rows_of(ours(released(), tensors, "f64"), patches, grids))
    assert max(ratios) <= 1, ratios


@pytest.mark.slow
def test_a_large_picture_takes_no_matrix_of_attention():
    """One layer on 16,384 patches: a float32 mask alone would take 1.07 GB, scores 17 GB. In a process of its own."""
    script = """
import resource, sys, torch
from tests.models.test_vision_encoder import *
config = config(depth=1, hidden_size=1152, num_heads=16, intermediate_size=1152, deepstack_visual_indexes=[])
encoder = ours(config, random_parameters(vision_encoder_parameters(config)), "bf16")
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
patches, grids = patches_of(config, [(1, 128, 128)]), [(1, 128, 128)]
before = peak()
rows_of(encoder, patches, grids)
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=ROOT)
    assert int(done.stdout) < 500_000  # kilobytes
