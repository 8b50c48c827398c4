"""The rows of the journal's tables of vision: the whole released encoder, random weights, against transformers.

python -m tests.models.vision_measurements accuracy|speed|resize > journal/data/vision-….json
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import replace

import numpy as np
import torch

from lluda.backends import select_backend
from lluda.config.vision import RELEASED_VISION
from lluda.inputs.media.vision_patches import video_patches
from lluda.models.vision_encoder import VisionEncoder, vision_encoder_parameters
from tests.inputs.media.pictures import image_patches
from tests.models.omni_reference import placed_parameters, random_parameters
from tests.models.test_vision_encoder import (
    WHOLE_GRIDS,
    distance_ratios,
    ours,
    patches_of,
    reference_of,
    relative_error,
    released,
    rounded,
    rows_of,
    theirs,
)

SPEED_GRIDS = [(1, 32, 48)]
ROUNDS = 5


def named(grid):
    kind = "picture" if grid[0] == 1 else f"video, {grid[0]} slices"
    return f"{kind}, {16 * grid[2]} x {16 * grid[1]} pixels"


def accuracy():
    """One row for each picture or video; the worst of the main rows and the three of DeepStack."""
    config = released()
    tensors = random_parameters(vision_encoder_parameters(config))
    inputs = {grid: patches_of(config, [grid]) for grid in WHOLE_GRIDS}
    module = reference_of(config, tensors)
    exact = {grid: theirs(module, patches, [grid]) for grid, patches in inputs.items()}
    module = rounded(module)
    others = {grid: theirs(module, patches, [grid]) for grid, patches in inputs.items()}
    del module
    found = {}
    for dtype in ("f32", "bf16", "f64"):
        encoder = ours(config, tensors, dtype)
        found[dtype] = {grid: rows_of(encoder, patches, [grid]) for grid, patches in inputs.items()}
        del encoder
    for grid in WHOLE_GRIDS:
        pairs = zip(found["f32"][grid], exact[grid], strict=True)
        ratios = distance_ratios(found["bf16"][grid], others[grid], found["f64"][grid])
        yield {
            "input": named(grid),
            "tokens": grid[0] * grid[1] * grid[2] // 4,
            "float32: max relative error to transformers": max(relative_error(mine, other) for mine, other in pairs),
            "BF16: distance to float64 / transformers' (main rows)": round(ratios[0], 3),
            "the same, worst of four outputs": round(max(ratios), 3),
        }


def speed():
    """Rounds in turn in one process, so that a busy machine is busy for all."""
    config = released()
    tensors = random_parameters(vision_encoder_parameters(config))
    patches = patches_of(config, SPEED_GRIDS)
    runs = {"transformers": (rounded(reference_of(config, tensors)), theirs)}
    for name in ("reference", "cpu"):
        backend = select_backend(name, "cpu", "bf16")
        parameters = placed_parameters(vision_encoder_parameters(config), tensors, backend)
        runs[f"lluda, {backend.describe()}"] = (VisionEncoder(config, parameters, backend), rows_of)
    times = {name: [] for name in runs}
    for _ in range(ROUNDS + 1):
        for name, (encoder, run) in runs.items():
            start = time.perf_counter()
            run(encoder, patches, SPEED_GRIDS)
            times[name].append(time.perf_counter() - start)
    base = statistics.median(times["transformers"][1:])
    for name, seconds in times.items():
        samples = sorted(seconds[1:])
        yield {
            "encoder": name,
            "input": named(SPEED_GRIDS[0]),
            "dtype": "bf16",
            "median ms": round(1000 * statistics.median(samples), 1),
            "min ms": round(1000 * samples[0], 1),
            "max ms": round(1000 * samples[-1], 1),
            "times as fast (median)": round(base / statistics.median(samples), 2),
        }


def resize():
    """How far the released processor's two ways to resize are from each other: Pillow's and torch's."""
    for height, width, config in ((1080, 1920, 786_432), (480, 640, 200_000), (333, 500, 160_000), (333, 517, 163_840)):
        bounds = replace(RELEASED_VISION, min_pixels=config // 2, max_pixels=config, min_frame_pixels=config // 2)
        rows, columns = np.mgrid[:height, :width]
        waves = [128 + 120 * np.sin(rows / 30 + k) * np.cos(columns / 40 - k) for k in range(3)]
        noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        for name, pixels in (("waves", np.stack(waves, axis=-1).astype(np.uint8)), ("noise", noise)):
            picture = image_patches(pixels, bounds)
            frame = video_patches(iter([pixels]), 1, replace(bounds, max_frame_pixels=config))
            steps = ((picture.values - frame.values).abs() * 127.5).round()
            yield {
                "pixels": f"{name}, {width} x {height}",
                "resized to": f"{picture.grid[2] * 16} x {picture.grid[1] * 16}",
                "values that differ": f"{(steps > 0).float().mean().item():.2%}",
                "by at most (of 255)": int(steps.max()),
            }


if __name__ == "__main__":
    torch.set_num_threads(2)
    print(json.dumps(list({"accuracy": accuracy, "speed": speed, "resize": resize}[sys.argv[1]]()), indent=1))
