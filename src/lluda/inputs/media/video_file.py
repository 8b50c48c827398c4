"""Videos as the model takes them: upright RGB frames taken at even steps of time, decoded one by one.

Files are read in a process of their own (`media_decoder.py`, `video_decoder.py`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from lluda.config.vision import RELEASED_VISION, VISION_LIMITS, VisionInputConfig, VisionLimits
from lluda.errors import InvalidRequest, LimitExceeded
from lluda.inputs.decoding.image_limits import check_frame
from lluda.inputs.decoding.media_decoder import DECODER
from lluda.inputs.decoding.media_file import MediaFile
from lluda.inputs.decoding.video_decoder import TIE
from lluda.inputs.media.image_file import rgb_array

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class SampledVideo:
    """``count`` frames at ``fps`` a second, frame k from k / fps seconds after the first. A temporal slice of the
    encoder lasts ``temporal_patch_size / fps`` seconds. ``height`` and ``width`` of a frame as it is stored (before its
    rotation). ``has_sound``: the file has an audio track too."""

    count: int
    fps: float
    height: int
    width: int
    has_sound: bool
    _read: Callable[[], Iterator[NDArray[np.uint8]]] = field(repr=False)

    def frames(self) -> Iterator[NDArray[np.uint8]]:
        """Exactly ``count`` frames ``[height, width, 3]``, all of one size; each call begins anew.

        Raises:
            CorruptFile: frames that cannot be decoded.
            LimitExceeded: frames too large, or one side too many times the other.
        """
        return self._read()


def open_video(
    source: Any,
    fps: float | None = None,
    *,
    config: VisionInputConfig = RELEASED_VISION,
    where: str = "video",
    limits: VisionLimits = VISION_LIMITS,
) -> SampledVideo:
    """A file (its path or bytes), of which ``fps`` frames a second are taken (``config.fps`` if not given; fewer where
    the video has fewer, or more than ``config.max_frames`` would be), or an array uint8 ``[frames, height, width, 3]``
    of frames that were taken at ``fps``, which then must be given. ``where`` names bytes and arrays in errors.

    Raises:
        InvalidRequest: no such file, no permission, an array of another kind, or an ``fps`` out of range.
        LimitExceeded: beyond :class:`VisionLimits`, or more memory or time than a file of its size may take.
        CorruptFile: not a video that is read, without frames, cut off, a header that cannot be true, or the decoder
            crashed on it.
    """
    if fps is not None and not (type(fps) in (int, float) and 0 < fps <= limits.max_fps):
        raise InvalidRequest(f"{where}: fps must be a number above 0, up to {limits.max_fps:g}; got {fps!r:.40}")
    if isinstance(source, str | os.PathLike | bytes):
        file = MediaFile(source, "video", limits.max_video_bytes, where)
        return _sampled_file(file, config.fps if fps is None else float(fps), config.max_frames, limits)
    frames = video_array(source, where, limits)
    if fps is None:
        raise InvalidRequest(f"{where}: an array of frames needs its fps, the frames a second they were taken at")
    return SampledVideo(len(frames), float(fps), frames.shape[1], frames.shape[2], False, lambda: iter(frames))


def _sampled_file(file: MediaFile, fps: float, max_frames: int, limits: VisionLimits) -> SampledVideo:
    job = DECODER.open("video", file, limits=asdict(limits))
    job.close()
    track = job.about
    seconds = track["end"] - track["start"]
    fps = min(fps, track["packets"] / seconds, max_frames / seconds)
    count = max(1, math.floor((seconds + TIE) * fps))

    def read() -> Iterator[NDArray[np.uint8]]:
        return DECODER.open("frames", file, track=track, fps=fps, count=count, limits=asdict(limits)).arrays()

    return SampledVideo(count, fps, track["height"], track["width"], track["has_sound"], read)


def video_array(source: Any, where: str, limits: VisionLimits = VISION_LIMITS) -> NDArray[np.uint8]:
    """``source`` as uint8 ``[frames, height, width, 3]``. InvalidRequest: it is not. LimitExceeded: too many, too large
    or too long."""
    frames = rgb_array(source, 4, where)
    if len(frames) > limits.max_array_frames:
        raise LimitExceeded(f"{where}: {len(frames)} frames exceed the {limits.max_array_frames} of one video")
    check_frame(where, frames.shape[1], frames.shape[2], limits)
    return frames
