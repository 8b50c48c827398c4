"""From pixels to the patches that the vision encoder reads, as the released processor makes them (spec section 4.1).

Images are resized by Pillow and frames by torch, both bicubic with antialiasing: so does the processor, whose video
half is torch alone. On the same bytes the two differ mostly in under one value of a hundred, and by one of 255
(journal/13-vision.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from lluda.config.vision import VisionInputConfig
from lluda.inputs.decoding.image_limits import check_size

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class VisionPatches:
    """``values``: float32 tensor ``[t * h * w, channels * frames * patch * patch]``, slice by slice; in a slice by
    merge blocks, along the rows, and in a block along its rows. ``grid``: ``(t, h, w)`` in patches."""

    values: torch.Tensor
    grid: tuple[int, int, int]


def resized_image_patches(pixels: NDArray[np.uint8], config: VisionInputConfig) -> VisionPatches:
    """Patches of an image ``[height, width, 3]`` that has the size of :func:`image_size` already; it is repeated for
    all frames of its one temporal slice."""
    return _patches([pixels], 1, pixels.shape[0], pixels.shape[1], config)


def video_patches(
    frames: Iterable[NDArray[np.uint8]],
    count: int,
    config: VisionInputConfig,
    *,
    max_tokens: int | None = None,
    where: str = "video",
) -> VisionPatches:
    """Patches of ``count`` (at least 1) frames ``[height, width, 3]`` of one size, taken one by one; the last one
    fills up the last slice. ``max_tokens``: see :func:`frame_size`. LimitExceeded: as for an image."""
    iterator = iter(frames)
    first = next(iterator)
    height, width = first.shape[:2]
    height, width = frame_size(height, width, count, config, max_tokens=max_tokens, where=where)
    slices = -(-count // config.temporal_patch_size)
    fitted = (_resize_frame(frame, height, width) for frame in chain([first], iterator))
    return _patches(fitted, slices, height, width, config)


def image_size(height: int, width: int, config: VisionInputConfig, *, where: str = "image") -> tuple[int, int]:
    """Height and width (pixels) that an image is resized to. LimitExceeded: one side too many times the other."""
    return _fit(height, width, config.min_pixels, config.max_pixels, config.factor, where)


def frame_size(
    height: int,
    width: int,
    count: int,
    config: VisionInputConfig,
    *,
    max_tokens: int | None = None,
    where: str = "video",
) -> tuple[int, int]:
    """Height and width (pixels) that each of ``count`` frames is resized to.

    With ``max_tokens`` the video's tokens are shared out evenly over its slices, though no frame gets less than a
    twentieth above ``min_frame_pixels`` (the rule of the released processor's ``cap_pixels_per_frame``).
    LimitExceeded: one side too many times the other.
    """
    most = config.max_frame_pixels
    if max_tokens is not None:
        share = max_tokens * config.factor**2 * config.temporal_patch_size // count
        most = max(min(most, share), int(config.min_frame_pixels * 1.05))
    return _fit(height, width, config.min_frame_pixels, most, config.factor, where)


def _fit(height: int, width: int, least: int, most: int, factor: int, where: str) -> tuple[int, int]:
    """The multiples of ``factor`` nearest to height and width, or, where their product is not ``least`` to ``most``,
    to both scaled by one number."""
    check_size(where, height, width)
    rows, columns = round(height / factor) * factor, round(width / factor) * factor
    if rows * columns > most:
        scale = math.sqrt(height * width / most)
        rows, columns = (max(factor, math.floor(side / scale / factor) * factor) for side in (height, width))
    elif rows * columns < least:
        scale = math.sqrt(least / (height * width))
        rows, columns = (math.ceil(side * scale / factor) * factor for side in (height, width))
    return rows, columns


def _resize_frame(frame: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    import numpy as np
    import torch
    from torch.nn import functional as F

    if frame.shape[:2] == (height, width):
        return frame
    planes = torch.tensor(np.ascontiguousarray(frame)).permute(2, 0, 1)[None]
    resized = F.interpolate(planes, size=(height, width), mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def _patches(
    frames: Iterable[NDArray[np.uint8]], slices: int, height: int, width: int, config: VisionInputConfig
) -> VisionPatches:
    """Patches of resized frames, of which the last is repeated until the slices are full."""
    import numpy as np
    import torch

    patch, merge, together = config.patch_size, config.merge_size, config.temporal_patch_size
    rows, columns = height // patch, width // patch
    values = np.empty((slices, rows * columns, 3 * together * patch * patch), np.float32)
    # Slice, block row, row in block, row in patch, the same three for columns, and last what becomes a patch's frame.
    cut = (rows // merge, merge, patch, columns // merge, merge, patch, 3)
    blocks = values.reshape(slices, rows // merge, columns // merge, merge, merge, 3, together, patch, patch)
    table, index = _normalised(config), 0
    for index, frame in enumerate(frames):
        parts = frame.reshape(cut).transpose(0, 3, 1, 4, 6, 2, 5)
        for channel in range(3):
            blocks[index // together, ..., channel, index % together, :, :] = table[channel][parts[..., channel, :, :]]
    assert index // together == slices - 1, f"{index + 1} frames do not make {slices} slices"
    for missing in range(index % together + 1, together):
        blocks[-1, ..., missing, :, :] = blocks[-1, ..., index % together, :, :]
    return VisionPatches(torch.from_numpy(values.reshape(slices * rows * columns, -1)), (slices, rows, columns))


def _normalised(config: VisionInputConfig) -> NDArray[np.float32]:
    """What each byte of each channel becomes, ``[3, 256]``, rounded where the released processor rounds."""
    import numpy as np

    rescaled = (np.arange(256) * (1 / 255)).astype(np.float32)
    mean, deviation = (np.array(each, np.float32)[:, None] for each in (config.image_mean, config.image_std))
    normalised: NDArray[np.float32] = (rescaled - mean) / deviation
    return normalised
