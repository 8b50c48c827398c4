"""transformers' own video processor on frames, for machines without torchvision, which it wants: run as a script.

Of torchvision it needs a resize, which is torch's interpolation, and a normalisation; both stand in here. It must be a
process of its own: elsewhere transformers shall not think that it has torchvision.

    python transformers_video.py FOLDER MAX_TOKENS …

For each MAX_TOKENS (0: no cap of a video's tokens) FOLDER/MAX_TOKENS.npy holds frames ``[frames, height, width, 3]``;
patches and grid are written to FOLDER/MAX_TOKENS.npz.
"""

from __future__ import annotations

import importlib.metadata
import sys
from enum import Enum
from importlib.machinery import ModuleSpec
from types import ModuleType

import numpy as np
import torch
from torch.nn import functional as F

InterpolationMode = Enum(
    "InterpolationMode",
    {
        name.upper().replace("-", "_"): name
        for name in "nearest nearest-exact bilinear bicubic box hamming lanczos".split()
    },
)


def resize(image, size, interpolation, antialias=True):
    flat = image.reshape(-1, *image.shape[-3:])
    resized = F.interpolate(flat, tuple(size), mode=interpolation.value, antialias=antialias)
    return resized.reshape(*image.shape[:-2], *size)


def normalize(image, mean, std, inplace=False):
    mean, std = (torch.as_tensor(values, dtype=image.dtype)[:, None, None] for values in (mean, std))
    return (image - mean) / std


def stand_in():
    names = "", ".io", ".transforms", ".transforms.functional", ".transforms.v2", ".transforms.v2.functional"
    for name in names:
        module = ModuleType(f"torchvision{name}")
        module.__spec__ = ModuleSpec(module.__name__, None, is_package=True)
        module.__path__ = []
        module.InterpolationMode, module.resize, module.normalize = InterpolationMode, resize, normalize
        module.pil_to_tensor = module.grayscale_to_rgb = lambda image: image
        sys.modules[module.__name__] = module
        parent, _, child = module.__name__.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    version = importlib.metadata.version
    importlib.metadata.version = lambda name: "0.28.0" if name == "torchvision" else version(name)


def main(folder, *budgets):
    stand_in()
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    size = {"shortest_edge": 128 * 32 * 32, "longest_edge": 768 * 32 * 32}  # as the Omni processor passes it
    processor = Qwen2VLVideoProcessor(
        patch_size=16, merge_size=2, temporal_patch_size=2, image_mean=[0.5] * 3, image_std=[0.5] * 3, size=size
    )
    for budget in budgets:
        processor.max_video_tokens = int(budget)
        video = torch.from_numpy(np.load(f"{folder}/{budget}.npy")).permute(0, 3, 1, 2)
        made = processor([video], return_tensors="pt", cap_pixels_per_frame=budget != "0")
        grid = made["video_grid_thw"][0].numpy()
        np.savez(f"{folder}/{budget}.npz", values=made["pixel_values_videos"].numpy(), grid=grid)


if __name__ == "__main__":
    main(*sys.argv[1:])
