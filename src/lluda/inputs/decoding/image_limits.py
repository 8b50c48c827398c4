"""Limits of the size of an image, and of a video's frames."""

from __future__ import annotations

from lluda.config.vision import VISION_LIMITS, VisionLimits
from lluda.errors import LimitExceeded


def check_size(where: str, height: int, width: int, limits: VisionLimits = VISION_LIMITS) -> None:
    """LimitExceeded if an image of that many pixels is too large, a side too long, or too many times the other."""
    if width * height > limits.max_pixels:
        raise LimitExceeded(
            f"{where}: {width} x {height} pixels exceed the {limits.max_pixels} of one image; make it smaller"
        )
    if max(width, height) > limits.max_side:
        raise LimitExceeded(
            f"{where}: of {width} x {height} pixels one side exceeds the {limits.max_side} of an image; make it smaller"
        )
    if max(width, height) > limits.max_aspect_ratio * min(width, height):
        raise LimitExceeded(
            f"{where}: of {width} x {height} pixels one side is more than {limits.max_aspect_ratio} times the other; "
            "cut it up"
        )


def check_frame(where: str, height: int, width: int, limits: VisionLimits) -> None:
    """LimitExceeded if a frame is too large, or its size unknown."""
    if height * width > limits.max_frame_pixels:
        raise LimitExceeded(
            f"{where}: frames of {width} x {height} pixels exceed {limits.max_frame_pixels}; make it smaller"
        )
    if not height or not width:  # as a decoder leaves them that was not allowed so many
        raise LimitExceeded(f"{where}: the size of its frames is unknown, or exceeds {limits.max_frame_pixels} pixels")
    check_size(where, height, width, limits)
