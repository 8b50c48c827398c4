"""Videos from files, by FFmpeg (PyAV); runs in the process that decodes media (`media_jobs.py`).

FFmpeg reads an allow-list of containers, whatever a file is named. The duration is that of its packets, with
which the header is compared. A frame is on display at the times of
the stream's own timestamps, however uneven they are. Only frames that are taken are converted, and none is buffered.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from lluda.config.vision import VisionLimits
from lluda.errors import CorruptFile, LimitExceeded
from lluda.inputs.decoding.audio_header import has_placeholder_size
from lluda.inputs.decoding.image_limits import check_frame
from lluda.inputs.decoding.library_errors import library_errors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TIE = 1.001e-3
"""Seconds by which two equal times may differ: some containers round to milliseconds."""

_CONTAINERS = "asf,avi,flv,gif,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mpeg,mpegts,ogg"

_PACKETS_PER_BYTE = 2
"""Bytes that packets may hold for each of the file: a demuxer adds a little, an index that names the same bytes again
and again makes terabytes of a kilobyte."""

_MAX_THREADS = 4
"""Of a decoder; each takes 8 MB for its stack from what a file may take."""


@dataclass(frozen=True, slots=True)
class Track:
    """What the packets of a video say: when its first frame is on display and until when its last is (seconds), and
    how many there are; how large a stored frame is, and whether there is audio."""

    start: float
    end: float
    packets: int
    height: int
    width: int
    has_sound: bool

    @property
    def step(self) -> float:
        """Seconds that a frame lasts, on the average."""
        return (self.end - self.start) / self.packets

    def described(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def scan(path: Path, file: BinaryIO, limits: VisionLimits) -> Track:
    """Read all packets of an open video, without decoding.

    LimitExceeded: too long, too large, or too much of it for its size. CorruptFile: not a video that is read, without
    frames, cut off, or a header that cannot be true.
    """
    with _container(path, file, limits) as (container, stream):
        start, latest, end, file_end, packets, whole = math.inf, -math.inf, -math.inf, 0.0, 0, True
        for packet in _bounded(path, container.demux(), file):
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
        if not has_placeholder_size(file):
            _check_promise(path, container, file_end - min(start, 0.0), limits)
        return Track(start, end, packets, stream.height, stream.width, bool(container.streams.audio))


def _bounded(path: Path, packets: Iterator[Any], file: BinaryIO) -> Iterator[Any]:
    """The packets, until they hold more than the file can."""
    size = os.fstat(file.fileno()).st_size
    most = size * _PACKETS_PER_BYTE + (1 << 20)
    total = 0
    for packet in packets:
        total += packet.size + 1
        if total > most:
            rule = "its index promises more frames than the file holds; it is damaged: copy it again"
            raise CorruptFile(path, rule, expected=f"at most {most} bytes of them in {size}")
        yield packet


def _check_promise(path: Path, container: Any, seconds: float, limits: VisionLimits) -> None:
    """CorruptFile if the packets end before the header says, which counts from 0 or from the first frame. Not every
    container promises anything: some streams just end where they end."""
    promised = float(container.duration or 0) / 1_000_000
    if seconds < promised - limits.missing_seconds:
        rule = "the video ends before its header says; the file is cut off: copy it again"
        raise CorruptFile(path, rule, expected=f"{promised:.1f} s", found=f"{seconds:.1f} s")


def decode(
    path: Path, file: BinaryIO, track: Track, fps: float, count: int, limits: VisionLimits
) -> Iterator[NDArray[np.uint8]]:
    """``count`` frames ``[height, width, 3]``, ``fps`` a second: for each moment the last frame that began before it.

    CorruptFile: frames that cannot be decoded. LimitExceeded: they are larger than the header said.
    """
    with _container(path, file, limits) as (container, stream):
        taken, shown, at, size = 0, None, track.start, (0, 0)
        for frame in container.decode(stream):
            at = at if frame.time is None else float(frame.time)
            if shown is None:
                shown, size = frame, (frame.height, frame.width)
                check_frame(str(path), *size, limits)
            while taken < count and track.start + taken / fps < at - TIE:
                yield _rgb(shown, size)
                taken += 1
            if taken == count:
                return
            shown = frame
        if shown is None or track.start + (count - 1) / fps > at + track.step + limits.missing_seconds:
            raise CorruptFile(path, "frames that the video promises cannot be decoded; copy it again")
        for _ in range(taken, count):
            yield _rgb(shown, size)


@contextmanager
def _container(path: Path, file: BinaryIO, limits: VisionLimits) -> Iterator[tuple[Any, Any]]:
    """The open file and its first track of video. What FFmpeg raises inside becomes CorruptFile."""
    import av

    file.seek(0)
    # FFmpeg allocates no frame larger than max_pixels, neither here, where it probes, nor later.
    options = {
        "format_whitelist": _CONTAINERS,
        "protocol_whitelist": "none",
        "max_pixels": str(limits.max_frame_pixels),
    }
    with library_errors(path, "not a readable video, or cut off; convert it to mp4, webm or mkv"):
        container = av.open(file, metadata_errors="ignore", options=options)
    rule = "the video cannot be decoded to its end; the file is damaged or cut off"
    with library_errors(path, rule), container:
        stream = _video_stream(path, container)
        check_frame(str(path), stream.height, stream.width, limits)
        stream.codec_context.options = {"max_pixels": options["max_pixels"]}
        stream.codec_context.thread_count = min(os.cpu_count() or 1, _MAX_THREADS)
        yield container, stream


def _video_stream(path: Path, container: Any) -> Any:
    import av.stream

    cover = av.stream.Disposition.attached_pic
    for stream in container.streams.video:
        if not stream.disposition & cover:
            if stream.codec_context is None:
                raise CorruptFile(path, "the video's codec is not supported; convert it to mp4 (H.264)")
            return stream
    raise CorruptFile(path, "the file holds no video track")


def _rgb(frame: Any, size: tuple[int, int]) -> NDArray[np.uint8]:
    """RGB bytes of a frame in the first one's stored ``size`` (a stream may change its own), turned upright."""
    import numpy as np

    pixels = frame.to_ndarray(format="rgb24", height=size[0], width=size[1])
    upright: NDArray[np.uint8] = np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))
    return upright
