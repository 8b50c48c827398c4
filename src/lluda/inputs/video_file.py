"""Videos as the model sees them: upright RGB frames taken at even steps of time, decoded one by one.

FFmpeg (PyAV) reads an allow-list of containers, whatever a file is named. How long a video is, its packets say and not
its header, which is then held against them. A frame stands for the moment at which it is on display by the stream's own
timestamps, however uneven they are. Only frames that are taken are converted, and none is kept.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lluda.config_vision import RELEASED_VISION, VISION_LIMITS, VisionInputConfig, VisionLimits
from lluda.errors import CorruptFile, InvalidRequest, LimitExceeded, LludaError
from lluda.inputs.image_file import check_size, open_media, rgb_array

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CONTAINERS = "asf,avi,flv,gif,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mpeg,mpegts,ogg"
_TIE = 1.001e-3
"""Seconds by which two times may differ and be the same: some containers round to milliseconds."""


@dataclass(frozen=True, slots=True)
class SampledVideo:
    """``count`` frames at ``fps`` a second, frame k from k / fps seconds after the first. A temporal slice of the
    encoder lasts ``temporal_patch_size / fps`` seconds. ``has_sound``: the file has a sound track too."""

    count: int
    fps: float
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
    """A file (str or path), of which ``fps`` frames a second are taken (``config.fps`` if not given; fewer where the
    video has fewer, or more than ``config.max_frames`` would be), or an array uint8 ``[frames, height, width, 3]`` of
    frames that were taken at ``fps``, which then must be given. ``where`` names an array in errors.

    Raises:
        InvalidRequest: no such file, no permission, an array of another kind, or an ``fps`` out of range.
        LimitExceeded: beyond :class:`VisionLimits`.
        CorruptFile: not a video that is read, without frames, cut off, or a header that cannot be true.
    """
    if fps is not None and not (type(fps) in (int, float) and 0 < fps <= limits.max_fps):
        raise InvalidRequest(f"{where}: fps must be a number above 0, up to {limits.max_fps:g}; got {fps!r:.40}")
    if isinstance(source, str | os.PathLike):
        return _sampled_file(Path(source), config.fps if fps is None else float(fps), config.max_frames, limits)
    frames = rgb_array(source, 4, where)
    if fps is None:
        raise InvalidRequest(f"{where}: an array of frames needs its fps, the frames a second they were taken at")
    if len(frames) > limits.max_array_frames:
        raise LimitExceeded(f"{where}: {len(frames)} frames exceed the {limits.max_array_frames} of one video")
    _check_frame(where, frames.shape[1], frames.shape[2], limits)
    return SampledVideo(len(frames), float(fps), False, lambda: iter(frames))


@dataclass(frozen=True, slots=True)
class _Track:
    """What the packets of a video say: when its first frame is on display and until when its last is (seconds), and
    how many there are."""

    start: float
    end: float
    packets: int
    has_sound: bool

    @property
    def step(self) -> float:
        """Seconds that a frame lasts, on the average."""
        return (self.end - self.start) / self.packets


def _sampled_file(path: Path, fps: float, max_frames: int, limits: VisionLimits) -> SampledVideo:
    track = _scan(path, limits)
    seconds = track.end - track.start
    fps = min(fps, 1 / track.step, max_frames / seconds)
    count = max(1, math.floor((seconds + _TIE) * fps))
    return SampledVideo(count, fps, track.has_sound, lambda: _decode(path, track, fps, count, limits))


@contextmanager
def _container(path: Path, limits: VisionLimits) -> Iterator[tuple[Any, Any]]:
    """The open file and its first track of moving pictures. What FFmpeg raises inside becomes CorruptFile."""
    import av

    with os.fdopen(open_media(path, limits.max_video_bytes, "video"), "rb") as file:
        # FFmpeg allocates no frame larger than max_pixels, neither here, where it probes, nor later.
        options = {
            "format_whitelist": _CONTAINERS,
            "protocol_whitelist": "none",
            "max_pixels": str(limits.max_frame_pixels),
        }
        try:
            container = av.open(file, metadata_errors="ignore", options=options)
        except (av.FFmpegError, OSError, ValueError):
            rule = "not a video that can be read, or cut off; convert it to mp4, webm or mkv"
            raise CorruptFile(path, rule) from None
        with container:
            stream = _moving_pictures(path, container)
            _check_frame(str(path), stream.height, stream.width, limits)
            stream.codec_context.options = {"max_pixels": options["max_pixels"]}
            try:
                yield container, stream
            except LludaError:
                raise
            except (av.FFmpegError, OSError, ValueError):
                rule = "the video cannot be decoded to its end; the file is damaged or cut off"
                raise CorruptFile(path, rule) from None


def _moving_pictures(path: Path, container: Any) -> Any:
    import av.stream

    cover = av.stream.Disposition.attached_pic
    for stream in container.streams.video:
        if not stream.disposition & cover:
            if stream.codec_context is None:
                raise CorruptFile(path, "the video's codec is not supported; convert it to mp4 (H.264)")
            return stream
    raise CorruptFile(path, "the file holds no moving pictures")


def _scan(path: Path, limits: VisionLimits) -> _Track:
    """Reads all packets and decodes none."""
    with _container(path, limits) as (container, stream):
        start, latest, end, file_end, packets, whole = math.inf, -math.inf, -math.inf, 0.0, 0, True
        for packet in container.demux():
            at = packet.pts if packet.pts is not None else packet.dts
            if not packet.size or at is None:
                continue
            begins = float(at * packet.time_base)
            ends = begins + float((packet.duration or 0) * packet.time_base)
            file_end = max(file_end, ends)
            if packet.stream is stream:
                start, latest, end, packets = min(start, begins), max(latest, begins), max(end, ends), packets + 1
                whole = not packet.is_corrupt
        if not packets:
            raise CorruptFile(path, "the video holds no frames; copy it again")
        if end <= latest:  # it is not said how long the last frame lasts: as long as the others
            end = latest + ((latest - start) / (packets - 1) if latest > start else 1.0)
        if end - start > limits.max_seconds:
            raise LimitExceeded(
                f"{path}: {end - start:.0f} s of video exceed the {limits.max_seconds} s of one; cut it up"
            )
        if not whole:
            raise CorruptFile(path, "the last frame is not there whole; the file is cut off: copy it again")
        _check_promise(path, container, file_end - min(start, 0.0), limits)
        return _Track(start, end, packets, bool(container.streams.audio))


def _check_promise(path: Path, container: Any, seconds: float, limits: VisionLimits) -> None:
    """CorruptFile if the packets end before the header says, which counts from 0 or from the first frame. Not every
    container promises anything: some streams just end where they end."""
    promised = float(container.duration or 0) / 1_000_000
    if seconds < promised - limits.missing_seconds:
        rule = "the video ends before its header says; the file is cut off: copy it again"
        raise CorruptFile(path, rule, expected=f"{promised:.1f} s", found=f"{seconds:.1f} s")


def _decode(path: Path, track: _Track, fps: float, count: int, limits: VisionLimits) -> Iterator[NDArray[np.uint8]]:
    """For each moment to be shown the last frame that began before it."""
    with _container(path, limits) as (container, stream):
        taken, shown, at, size = 0, None, track.start, (0, 0)
        for frame in container.decode(stream):
            at = at if frame.time is None else float(frame.time)
            if shown is None:
                shown, size = frame, (frame.height, frame.width)
                _check_frame(str(path), *size, limits)
            while taken < count and track.start + taken / fps < at - _TIE:
                yield _rgb(shown, size)
                taken += 1
            if taken == count:
                return
            shown = frame
        if shown is None or track.start + (count - 1) / fps > at + track.step + limits.missing_seconds:
            raise CorruptFile(path, "frames that the video promises cannot be decoded; copy it again")
        for _ in range(taken, count):
            yield _rgb(shown, size)


def _rgb(frame: Any, size: tuple[int, int]) -> NDArray[np.uint8]:
    """RGB bytes of a frame in the first one's stored ``size`` (a stream may change its own), turned upright."""
    import numpy as np

    pixels = frame.to_ndarray(format="rgb24", height=size[0], width=size[1])
    upright: NDArray[np.uint8] = np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))
    return upright


def _check_frame(where: str, height: int, width: int, limits: VisionLimits) -> None:
    if height * width > limits.max_frame_pixels:
        raise LimitExceeded(
            f"{where}: frames of {width} x {height} pixels exceed {limits.max_frame_pixels}; make it smaller"
        )
    if not height or not width:  # as a decoder leaves them that was not allowed so many
        raise LimitExceeded(f"{where}: the size of its frames is unknown, or exceeds {limits.max_frame_pixels} pixels")
    check_size(where, height, width, limits)
