"""Patches of images of any size."""

from __future__ import annotations

import numpy as np

from lluda.config.vision import VisionInputConfig
from lluda.inputs.media.image_file import resized
from lluda.inputs.media.vision_patches import VisionPatches, image_size, resized_image_patches


def image_patches(pixels: np.ndarray, config: VisionInputConfig, *, where: str = "image") -> VisionPatches:
    """Of an image ``[height, width, 3]``, resized as the model takes it."""
    size = image_size(pixels.shape[0], pixels.shape[1], config, where=where)
    return resized_image_patches(resized(pixels, size), config)
