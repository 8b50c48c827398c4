"""Patches and grids against transformers' processors on the same decoded pixels."""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lluda.config.vision import RELEASED_VISION, VisionInputConfig
from lluda.errors import CorruptFile, LimitExceeded, UnsupportedModel
from lluda.inputs.media.image_file import read_image
from lluda.inputs.media.vision_patches import frame_size, image_size, video_patches
from tests.inputs.media.pictures import image_patches


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def processor_of(config):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil(
        patch_size=config.patch_size,
        merge_size=config.merge_size,
        temporal_patch_size=config.temporal_patch_size,
        size={"shortest_edge": config.min_pixels, "longest_edge": config.max_pixels},
        image_mean=list(config.image_mean),
        image_std=list(config.image_std),
    )


def assert_equal_to_transformers(pixels, config=RELEASED_VISION, source=None):
    found = image_patches(pixels, config)
    expected = processor_of(config)([Image.fromarray(pixels) if source is None else source], return_tensors="pt")
    assert found.grid == tuple(expected["image_grid_thw"][0].tolist())
    assert found.values.dtype == torch.float32
    assert torch.equal(found.values, expected["pixel_values"])


@pytest.mark.parametrize(
    "size",
    [
        (1, 1),
        (1, 200),
        (1000, 5),
        (20_000, 100),
        (16, 16),
        (31, 33),
        (56, 56),
        (64, 96),
        (333, 517),
        (480, 640),
        (720, 1280),
    ],
)
def test_pictures_of_many_sizes_equal_transformers_bit_by_bit(size):
    assert_equal_to_transformers(noise(*size))


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.gif"])
def test_files_equal_transformers(name, tmp_path):
    from transformers.image_utils import load_image

    path = tmp_path / name
    Image.fromarray(noise(90, 130)).save(path)
    assert_equal_to_transformers(read_image(path), source=load_image(str(path)))


def test_other_numbers_than_the_released_equal_transformers():
    config = VisionInputConfig(
        patch_size=14,
        temporal_patch_size=3,
        merge_size=3,
        min_pixels=5_000,
        max_pixels=20_000,
        image_mean=(0.48145466, 0.4578275, 0.40821073),
        image_std=(0.26862954, 0.26130258, 0.27577711),
    )
    for size in ((10, 20), (100, 120), (300, 400)):
        assert_equal_to_transformers(noise(*size), config)


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 20_000), st.integers(1, 20_000), st.sampled_from([(3136, 12_845_056), (131_072, 786_432)]))
def test_sizes_equal_transformers(height, width, bounds):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    config = replace(RELEASED_VISION, min_pixels=bounds[0], max_pixels=bounds[1])
    if max(height, width) > 200 * min(height, width) or height * width > 1 << 27:
        with pytest.raises(LimitExceeded, match=f"{width} x {height}"):
            image_size(height, width, config)
    else:
        assert image_size(height, width, config) == smart_resize(height, width, 32, *bounds)


FRAMES = {0: noise(5, 300, 450), 1500: noise(12, 450, 700)}
"""By the cap of a video's tokens that transformers is given; 0 is none."""


@pytest.fixture(scope="module")
def transformers_videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for budget, frames in FRAMES.items():
        np.save(folder / f"{budget}.npy", frames)
    script = Path(__file__).with_name("transformers_video.py")
    command = [sys.executable, script, folder, *map(str, FRAMES)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {budget: np.load(folder / f"{budget}.npz") for budget in FRAMES}


def test_a_video_equals_transformers(transformers_videos):
    """Five frames, the last repeated. The one difference: it fuses rescaling and normalising, a rounding of float32."""
    found, expected = video_patches(iter(FRAMES[0]), 5, RELEASED_VISION), transformers_videos[0]
    assert found.grid == tuple(expected["grid"])
    assert found.grid[0] == 3
    assert np.abs(found.values.numpy() - expected["values"]).max() < 1e-6


def test_a_video_of_many_frames_shares_its_tokens_as_in_transformers(transformers_videos):
    """Of a video's tokens it takes nine tenths."""
    found, expected = video_patches(iter(FRAMES[1500]), 12, RELEASED_VISION, max_tokens=1350), transformers_videos[1500]
    assert found.grid == tuple(expected["grid"])
    assert found.grid[1:] < video_patches(iter(FRAMES[1500]), 12, RELEASED_VISION).grid[1:]
    assert np.abs(found.values.numpy() - expected["values"]).max() < 1e-6


def test_frames_differ_from_pictures_by_the_resize_alone():
    """The two halves of the released processor, on a smooth picture: no value by more than one of 255."""
    rows, columns = np.mgrid[:480, :640]
    smooth = np.stack([128 + 120 * np.sin(rows / 30 + k) * np.cos(columns / 40 - k) for k in range(3)], axis=-1)
    pixels = smooth.astype(np.uint8)
    config = replace(RELEASED_VISION, min_pixels=RELEASED_VISION.min_frame_pixels, max_pixels=200_000)
    frame = video_patches([pixels], 1, replace(config, max_frame_pixels=200_000))
    difference = (frame.values - image_patches(pixels, config).values).abs()
    assert difference.max() <= 2 / 255 + 1e-6
    assert (difference > 0).float().mean() < 0.02


def test_a_slice_holds_its_frames_in_order():
    frames = np.stack([np.full((64, 64, 3), value, np.uint8) for value in (0, 51, 102, 153, 204)])
    config = replace(RELEASED_VISION, min_frame_pixels=64 * 64)
    found = video_patches(iter(frames), 5, config).values.view(3, 16, 3, 2, 256)
    expected = torch.tensor([[0, 51], [102, 153], [204, 204]]) / 127.5 - 1
    torch.testing.assert_close(found, expected[:, None, None, :, None].expand_as(found))


def test_arrays_may_be_views():
    """Mirrored, every second row, not to be written."""
    pixels = noise(200, 300)
    views = pixels[::-1], pixels[:, ::-2], np.frombuffer(pixels.tobytes(), np.uint8).reshape(pixels.shape)
    for view in views:
        found = image_patches(view, RELEASED_VISION), video_patches(iter([view]), 1, RELEASED_VISION)
        copied = view.copy()
        expected = image_patches(copied, RELEASED_VISION), video_patches(iter([copied]), 1, RELEASED_VISION)
        for mine, other in zip(found, expected, strict=True):
            assert torch.equal(mine.values, other.values)


def test_no_frame_is_kept():
    """But as patches, so that a long video lies nowhere whole."""
    references = []

    def frames():
        for _ in range(20):
            frame = np.zeros((64, 64, 3), np.uint8)
            references.append(weakref.ref(frame))
            assert sum(reference() is not None for reference in references) <= 3
            yield frame

    assert video_patches(frames(), 20, RELEASED_VISION).grid[0] == 10


def test_tokens_are_shared_out_but_frames_keep_a_least_size():
    assert frame_size(1080, 1920, 10, RELEASED_VISION) == frame_size(1080, 1920, 10, RELEASED_VISION, max_tokens=10**6)
    height, width = frame_size(1080, 1920, 600, RELEASED_VISION, max_tokens=100)
    assert 0.9 < height * width / RELEASED_VISION.min_frame_pixels < 1.05


def test_the_released_processor_config_is_read(released_configs):
    folder = released_configs / "Qwen3-Omni-30B-A3B-Instruct"
    raw = json.loads((folder / "preprocessor_config.reconstructed.json").read_text())
    assert VisionInputConfig.from_hf(raw) == RELEASED_VISION
    sized = {key: value for key, value in raw.items() if key not in ("min_pixels", "max_pixels")}
    sized["size"] = {"shortest_edge": 3136, "longest_edge": 12_845_056}
    assert VisionInputConfig.from_hf(sized) == RELEASED_VISION


@pytest.mark.parametrize(
    ("raw", "error", "word"),
    [
        ({"image_mean": [0.5, 0.5]}, CorruptFile, "image_mean"),
        ({"image_std": [0.5, 0, 0.5]}, CorruptFile, "image_std"),
        ({"max_pixels": 3000}, CorruptFile, "max_pixels"),
        ({"do_resize": False}, UnsupportedModel, "do_resize"),
        ({"resample": 2}, UnsupportedModel, "resample"),
        ({"rescale_factor": 0.5}, UnsupportedModel, "rescale_factor"),
        ({"image_processor_type": "CLIPImageProcessor"}, UnsupportedModel, "CLIPImageProcessor"),
    ],
)
def test_a_processor_config_outside_its_rules_is_refused(raw, error, word):
    with pytest.raises(error, match=word):
        VisionInputConfig.from_hf(raw)
