"""Memory and processor time that decoding one file may take, in proportion to its size.

The header of a file of a few kilobytes can ask for gigabytes. How much a decoder allocates is known only as it does,
so the operating system enforces the limits (RLIMIT_DATA, RLIMIT_CPU), whatever the format.
"""

from __future__ import annotations

_MEMORY = 200_000_000
_MEMORY_PER_BYTE = 10
_MOST_MEMORY = 8 << 30

_PLAUSIBLE_PIXELS = 16
"""Pixels in a byte of a photograph, at most: half a bit for each."""

IMAGE_BYTES_PER_PIXEL = 24
"""Of a decoder with all its copies. Measured with images of 20 million: GIF 5, PNG, JPEG and TIFF 7 to 9, AVIF 10 to
12, WebP 16 to 17, JPEG 2000 20."""

FRAME_BYTES_PER_PIXEL = 64
"""Of a video's decoder, estimated: up to 17 frames of 10-bit 4:2:0 (3 bytes) that refer to each other, one in RGB."""

LEAST_FRAME_BYTES_PER_PIXEL = 8
"""The same where few frames refer to each other: four of 8-bit 4:2:0, and a margin."""

_SECONDS = 8
_BYTES_PER_SECOND = 32_768


def data_bytes(size: int, pixels: int = 0, bytes_per_pixel: int = 0) -> int:
    """Memory that decoding a file of ``size`` bytes may take: ten times its size and 200 MB. An image of ``pixels``,
    or the frames of a video, may take what its decoder needs if the file is large enough to hold them: plain areas
    compress a thousandfold, photographs do not."""
    most = _MEMORY + _MEMORY_PER_BYTE * size
    if pixels <= _PLAUSIBLE_PIXELS * size:
        most += bytes_per_pixel * pixels
    return min(most, _MOST_MEMORY)


def processor_seconds(size: int) -> int:
    """Processor time (whole seconds) that decoding a file of ``size`` bytes may take."""
    return _SECONDS + size // _BYTES_PER_SECOND
