"""What the child process of `media_worker.py` does: decode one file after the other for the parent.

The parent sends ``{"job": kind, …}`` and the file's descriptor, and receives what the file is. Then it sends ``{"go":
…}``, and is sent arrays until ``{"end": true}``, or it sends the next job. Each kind is a generator here: it yields
what it found about the file, is sent the options of ``go``, and yields arrays. An error, ``{"error": class, "message":
text}``, ends the job; ``unusable`` says that this process should not be used again.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
import socket
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, BinaryIO

from lluda.config.audio import AudioLimits
from lluda.config.vision import VisionLimits
from lluda.errors import CorruptFile, LimitExceeded, LludaError
from lluda.inputs.child.child_messages import framed, limit_resources, receive
from lluda.inputs.decoding import audio_decoders, image_decoder, video_decoder
from lluda.inputs.decoding.audio_samples import convert
from lluda.inputs.decoding.media_limits import (
    FRAME_BYTES_PER_PIXEL,
    IMAGE_BYTES_PER_PIXEL,
    LEAST_FRAME_BYTES_PER_PIXEL,
    data_bytes,
    processor_seconds,
)

_Job = Generator[Any, Any, None]


def serve(channel: socket.socket) -> None:
    """Answer requests until the other end closes, or is gone."""
    limit_resources(CORE=0, FSIZE=0)
    channel.sendall(framed({"ready": True}))
    job: _Job | None = None
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            request = receive(channel)
            if "job" in request:
                if job is not None:
                    job.close()
                job = _run(request, _descriptor(channel))
                _send(channel, _next(job, None))
            else:
                assert job is not None, "a job is to go on that was not begun"
                answer = _next(job, request["go"])
                while not isinstance(answer, dict):
                    _send(channel, answer)
                    answer = _next(job, None)
                _send(channel, answer)
                job = None


def _audio(path: Path, file: BinaryIO, request: dict[str, Any]) -> _Job:
    limits = AudioLimits(**request["limits"])
    with contextlib.closing(audio_decoders.open_decoder(path, file, limits)) as decoder:
        go = yield {
            "kind": decoder.kind,
            "rate": decoder.rate,
            "channels": decoder.channels,
            "seconds": decoder.seconds,
        }
        samples = audio_decoders.checked_blocks(path, decoder, limits)
        yield from convert(samples, decoder.rate, go["rate"], where=str(path), limits=limits)


def _image(path: Path, file: BinaryIO, request: dict[str, Any]) -> _Job:
    with image_decoder.opened(path, file, VisionLimits(**request["limits"])) as image:
        most = _limit_memory(request, image.height * image.width, IMAGE_BYTES_PER_PIXEL)
        go = yield {"height": image.height, "width": image.width}
        try:
            yield image_decoder.pixels(path, image, go["size"])
        except CorruptFile:
            # These decoders report a lack of memory as damage.
            starved = image.height * image.width * IMAGE_BYTES_PER_PIXEL > most
            if starved and image.format in ("AVIF", "JPEG2000", "WEBP"):
                raise MemoryError from None
            raise


def _video(path: Path, file: BinaryIO, request: dict[str, Any]) -> _Job:
    track = video_decoder.scan(path, file, VisionLimits(**request["limits"]))
    yield track.described()


def _frames(path: Path, file: BinaryIO, request: dict[str, Any]) -> _Job:
    """Of a video that was scanned before."""
    track, limits = video_decoder.Track(**request["track"]), VisionLimits(**request["limits"])
    most = _limit_memory(request, track.height * track.width, FRAME_BYTES_PER_PIXEL)
    yield {}
    try:
        yield from video_decoder.decode(path, file, track, request["fps"], request["count"], limits)
    except CorruptFile:
        # Memory does not suffice for the few frames of that size that decoders buffer; they report it as damage.
        if track.height * track.width * LEAST_FRAME_BYTES_PER_PIXEL > most:
            raise MemoryError from None
        raise


_JOBS: dict[str, Callable[[Path, BinaryIO, dict[str, Any]], _Job]] = {
    "audio": _audio,
    "image": _image,
    "video": _video,
    "frames": _frames,
}
_LIBRARIES = {"audio": ("av", "soundfile", "soxr"), "image": ("PIL.Image",), "video": ("av",), "frames": ("av",)}


class _MemoryExceeded(LimitExceeded):
    """After a failed allocation a library may be in any state."""


def _run(request: dict[str, Any], descriptor: int) -> _Job:
    """The job with its file and limits."""
    path, kind, size = Path(request["path"]), request["kind"], request["size"]
    with os.fdopen(descriptor, "rb") as file:
        limit_resources(DATA=resource.RLIM_INFINITY)
        for name in ("numpy", *_LIBRARIES[request["job"]]):  # before the limits: they do not depend on the file
            importlib.import_module(name)
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit_resources(CPU=int(used.ru_utime + used.ru_stime) + 1 + processor_seconds(size))
        _limit_memory(request)
        try:
            yield from _JOBS[request["job"]](path, file, request)
        except MemoryError:
            raise _MemoryExceeded(
                f"{path}: to decode it takes more memory than one {kind} of {size} bytes is given (ten times its size "
                "and 200 MB); the file promises more than it can hold, or must be made smaller or cut up"
            ) from None


def _limit_memory(request: dict[str, Any], pixels: int = 0, bytes_per_pixel: int = 0) -> int:
    """Bound the data memory to what there is now and what the file may take, which is returned."""
    most = data_bytes(request["size"], pixels, bytes_per_pixel)
    with contextlib.suppress(OSError):  # a system without /proc has no such limit
        now = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
        limit_resources(DATA=now + most)
    return most


def _descriptor(channel: socket.socket) -> int:
    """The file's descriptor, sent behind a request; opened anew where that can be done, since copies of a descriptor
    share its position."""
    _, (given, *_), _, _ = socket.recv_fds(channel, 1, 1)
    with contextlib.suppress(OSError):
        found = os.open(f"/proc/self/fd/{given}", os.O_RDONLY | os.O_CLOEXEC)
        os.close(given)
        return found
    return given


def _next(job: _Job, options: dict[str, Any] | None) -> Any:
    """What a job yields, or how it ended."""
    try:
        return job.send(options)
    except StopIteration:
        return {"end": True}
    except LludaError as error:
        unusable = isinstance(error, _MemoryExceeded)
        name = "LimitExceeded" if unusable else type(error).__name__
        return {"error": name, "message": str(error), "unusable": unusable}
    except AssertionError as error:
        return {"error": "AssertionError", "message": f"in the process that decodes media: {error}", "unusable": True}
    except Exception as error:  # of a library, of a class that it does not document
        return {"error": "CorruptFile", "message": f"the decoder failed ({type(error).__name__})", "unusable": True}


def _send(channel: socket.socket, answer: Any) -> None:
    if isinstance(answer, dict):
        channel.sendall(framed(answer))
    else:
        channel.sendall(framed({"payload": answer.nbytes, "dtype": answer.dtype.str, "shape": answer.shape}))
        channel.sendall(answer.data)
